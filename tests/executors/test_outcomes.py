"""Outcomes assembled from parts, and clients that stay excluded when a round is repeated."""

from fedsim.executors.ray import outcomes
from fedsim.executors.ray.dispatch import Done, Failed
from fedsim.executors.ray.outcomes import LeftOut, whole
from fedsim.executors.ray.queues import Call


def call(index, clients, round=7):
    def split():
        parts, shared = len(clients), {"round": round}
        return [
            Call(index, "train", (), clients=(c,), part=part, parts=parts, **shared) for part, c in enumerate(clients)
        ]

    return Call(index, "train", (), clients=clients, round=round, split=split if len(clients) > 1 else None)


def test_parts_are_put_together_in_their_order():
    first, second = call(0, (1, 2, 3)), call(1, (4,))
    a, b, c = first.split()
    came = [Done(c, "c", [], "n"), Failed(a, "lost", ""), Done(second, "d", [], "n"), Done(b, "b", [], "n")]
    assert list(whole(came)) == [(1, [came[2]]), (0, [came[1], came[3], came[0]])]


def test_who_was_found_at_fault_is_not_tried_again_in_the_same_round():
    left_out, calls = LeftOut(), [call(0, (1, 2, 3)), call(1, (4,)), call(2, (5, 6))]
    assert left_out.sort_out(calls) == (calls, [])
    left_out.add(Failed(calls[0].split()[1], "lost", "took all memory"))
    left_out.add(Failed(calls[1], "timeout", "took an hour"))
    left_out.add(Failed(calls[2], "timeout", "the round took too long", at_fault=False))
    to_make, known = left_out.sort_out(calls)
    assert [each.clients for each in to_make] == [(1,), (3,), (5, 6)]
    assert [(each.call.clients, each.kind, each.message) for each in known] == [
        ((2,), "lost", "took all memory"),
        ((4,), "timeout", "took an hour"),
    ]
    assert len(list(whole([*known, *(Done(each, "", [], "") for each in to_make)]))) == len(calls)
    others = [call(0, (1, 2, 3), round=8), call(1, (4,), round=8)]
    assert left_out.sort_out(others) == (others, [])  # another round, another try


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(outcomes, "_MAX_KEPT", 3)
    left_out, calls = LeftOut(), [call(client, (client,)) for client in range(5)]
    for each in calls:
        left_out.add(Failed(each, "lost", ""))
    to_make, known = left_out.sort_out(calls)
    assert ([each.index for each in to_make], [each.call.index for each in known]) == ([0, 1], [2, 3, 4])
