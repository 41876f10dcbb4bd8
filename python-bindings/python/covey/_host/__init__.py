"""The process that runs Python agents for a worker: `python -m covey._host <socket> <table of calls> <file for stacks>`.

One event loop reads the socket and runs async methods; sync methods run on threads, so neither blocks the other. The actor's order and
concurrency are kept here: the worker hands calls on as they come. Standard output belongs to the agents' code and carries nothing of
the protocol. The process ends when its worker does. When it is replaced, a thread reads the socket (`covey._standby`).

- `__main__`: checks versions, prepares the interpreter, starts the process.
- `process`: the parts of a process, and which part each frame of the worker is for.
- `link`: the socket to the worker; what all parts must know of the process's state.
- `actors`: makes actors from definitions, gives their states, stops them.
- `turn`: what is known of an actor, its methods, and each call.
- `scheduler`: which turn has a place, and which waits.
- `runner`: runs a turn that has a place.
- `answers`: what a turn tells the worker.
- `threads`: threads for sync methods and for code that may block.

Calls that run with no other beside them are `covey._alone`.
"""
