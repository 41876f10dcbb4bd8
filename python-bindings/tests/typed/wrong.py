"""Each marked line is an error to type checkers, and no other is."""

import program

import covey

reader = program.Reader.remote("long")
program.Reader.remote(1)  # wrong
program.Reader.remote("long", limits=3)  # wrong
reader.counts.remote("x")  # wrong
reader.count.remote(5)  # wrong
reader.count.remote()  # wrong
reader.count.remote("x").results()  # wrong
number: str = reader.count.remote("x").result()  # wrong
for word in reader.count.remote("x"):  # wrong
    pass
reader.words.remote("x").result_of()  # wrong
reader.name.remote("x", upper="yes")  # wrong
reader.name.options(retry=1)  # wrong
program.square.remote("two")  # wrong
program.square.remotely(2)  # wrong
text: str = covey.get(program.square.remote(2))  # wrong
program.numbers.remote(2).get()  # wrong
reader.stop(1, 2)  # wrong
program.plain.submit(1, retry=2)  # wrong
program.plain.options(cpu=1)  # wrong
program.square.options(cpu=1)  # wrong
program.Reader.options(cpus="many")  # wrong
covey.llm_agent("x", temprature=1)  # wrong
covey.llm_agent("x").streams("hi", deadline=[])  # no error: methods of such an agent are not known
covey.llm_agent("x").stream("hi", deadline=[])  # wrong
covey.llm.complete("x", top_p="0.5")  # wrong
covey.agent(cpu=1)  # wrong
covey.task(retrys=1)  # wrong
covey.init(cpu=1)  # wrong
covey.connect(env_var={})  # wrong
covey.get(3)  # wrong
covey.get([3])  # wrong
covey.wait([3])  # wrong
covey.wait(reader.count.remote("x"))  # wrong
covey.put()  # wrong
reader.name.remote(covey.put("x"), upper="yes")  # wrong
reader.name.remote(covey.put("x"), 3, 4)  # wrong
program.square(covey.put(2))  # wrong
program.square.map(["two"])  # wrong
program.square.map_unordered(["two"])  # wrong
program.square.map([1], ordered=True)  # wrong
program.numbers.map(["two"])  # wrong
program.shout.map([1])  # wrong
program.square.retries  # wrong
program.square.remote()  # wrong
program.Reader.at(3)  # wrong
program.Reader.bind(1)  # wrong
program.Reader.pool("x", "long")  # wrong
program.Reader.pool(2, 3)  # wrong
program.Reader.map(["x"], methode="count")  # wrong
program.Reader.map_unordered(["x"], method=3)  # wrong
program.Reader.submit("x", retry=1)  # wrong
program.Reader.stream("x", methode="words")  # wrong
program.Reader.counts.submit("x")  # wrong
program.Reader.count.submit(1)  # wrong
program.Reader.count.submit("x", many=1)  # wrong
program.Reader.count.map([1])  # wrong
program.Reader.count.map(["x"], method="name")  # wrong
program.Reader.count.map_unordered([1])  # wrong
program.Reader.count.options(retry=1)  # wrong
program.Reader.words.map(["x"])  # wrong
program.Reader.words.stream(1)  # wrong
program.Reader.options(strategy="far")  # wrong
program.Reader.options(near=3)  # wrong
reader.submit("x")  # wrong
reader.map(["x"])  # wrong
reader.count.submit("x")  # wrong
reader.link(3)  # wrong
reader.count.remote("x").result([1])  # wrong
wrong: str = program.Reader.count.submit("x").result()  # wrong
covey.submit(program.Reader, "count", "x").result() + 1  # wrong
covey.submit(3)  # wrong
covey.submit(program.Reader, "count", "x", retries="3")  # wrong
covey.gang([3])  # wrong
covey.gang([program.Reader.bind("x")], strategy="far")  # wrong
covey.get_actor("x", program.Reader).counts  # wrong
covey.get_actor(3)  # wrong
covey.actor_id("x")  # wrong
covey.actor_id(program.Reader)  # wrong
covey.connect(reinit="no")  # wrong
covey.topic("x").listen(depth="many")  # wrong
covey.topic("x").add(program.Reader, "count")  # wrong
for _, root in program.square.map_unordered([1], with_input=True, return_exceptions=True):
    root + 1  # wrong
covey.status()["task"]  # wrong
covey.current().adress  # wrong
covey.agent(memory=[1])  # wrong
covey.Executor().submit(len, 3)  # wrong
covey.Executor(cpu=1)  # wrong
with program.Reader.pool(2, "long") as pool:
    pool.counts.remote("x")  # wrong
    pool.count.remote(5)  # wrong
    pool.count.map([5])  # wrong
    pool.count.map_unordered([5])  # wrong
    pool.count.map(["x"], ordered=True)  # wrong
    pool.count.options(retry=1)  # wrong
    pool.words.map(["x"])  # wrong
    one: str = pool.count.remote("x").result()  # wrong
called: str = reader.name("x")  # no error: a handle has the type of `self`, see docs/agents.md
reader.name("x").result()  # wrong
counted: int = reader.count("x")  # wrong
reader.count.map(["x"])  # no error: and of a pool
