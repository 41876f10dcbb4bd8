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
