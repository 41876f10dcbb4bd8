"""What is said of methods where they are defined, and where they are called."""

import ray

ray.init(num_cpus=2)


@ray.remote
class Splitter:
    @ray.method(num_returns=2)
    def halves(self, text):
        return text[: len(text) // 2], text[len(text) // 2 :]

    def parts(self, text, n):
        return tuple(text[i::n] for i in range(n))


splitter = Splitter.options(name="splitter").remote()
ray.get(splitter.__ray_ready__.remote())
left, right = splitter.halves.remote("abcd")
assert ray.get([left, right]) == ["ab", "cd"]
a, b, c = splitter.parts.options(num_returns=3).remote("abcabc", 3)
assert ray.get(b) == "bb"
assert ray.get(splitter.parts.remote("xy", 2)) == ("x", "y")
first, second = ray.get_actor("splitter").halves.remote("1234")
assert ray.get([first, second]) == ["12", "34"]
