"""One function over many inputs, on all cores of the cluster, with a progress bar."""

import covey


@covey.task(cpus=1, retries=3)
def primes_below(limit: int) -> int:
    """Counts primes. It runs again when its worker dies, so it must not matter that it runs twice."""
    sieve = bytearray([1]) * limit
    sieve[:2] = b"\0\0"
    for n in range(2, int(limit**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, limit, n)))
    return sum(sieve)


def main() -> None:
    limits = range(100_000, 2_100_000, 100_000)

    # `map` gives the results in the order of the inputs. The bar is shown where there is a terminal.
    counts = primes_below.map(limits, progress=True)
    print(f"{counts[0]:,} primes below {limits[0]:,}, {counts[-1]:,} below {limits[-1]:,}")
    assert counts == [primes_below(limit) for limit in limits], "called without .map or .remote, the function runs here"

    # One failure need not end the rest: here it takes the place of its result.
    for limit, count in zip((10, -1, 100), primes_below.map([10, -1, 100], return_exceptions=True), strict=True):
        print(f"below {limit}: {count!r}")
        assert isinstance(count, Exception) == (limit < 0)

    # `map_unordered` gives each result as soon as it is there.
    for limit, count in primes_below.map_unordered([3_000_000, 10], with_input=True):
        print(f"{count:,} below {limit:,}")


if __name__ == "__main__":
    with covey.init():
        main()
