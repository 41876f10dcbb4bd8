"""Handles travel: to tasks, to other actors, and back."""

import ray

ray.init(num_cpus=2)


@ray.remote(num_cpus=0)
class Board:
    def __init__(self):
        self.scores = {}

    def report(self, name, score):
        self.scores[name] = score

    def read(self):
        return self.scores


@ray.remote(num_cpus=0)
class Player:
    def __init__(self, name, board):
        self.name, self.board = name, board

    def play(self):
        ray.get(self.board.report.remote(self.name, len(self.name)))
        return self.board

    def me(self):
        return ray.get_runtime_context().get_actor_id()


@ray.remote
def referee(board, players):
    ray.get([player.play.remote() for player in players])
    return board


board = Board.remote()
players = [Player.remote(name, board) for name in ("ann", "berta")]
same = ray.get(referee.remote(board, players))
assert ray.get(same.read.remote()) == {"ann": 3, "berta": 5}
assert len(set(ray.get([player.me.remote() for player in players]))) == 2
again = ray.get(players[0].play.remote())
assert ray.get(again.read.remote()) == {"ann": 3, "berta": 5}
