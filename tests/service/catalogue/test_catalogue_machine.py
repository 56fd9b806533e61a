"""Any sequence of catalogue operations on two replicas, against a plain dictionary."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from service.catalogue import Catalogue, Delete, Patch, Put, replica
from service.errors import CatalogueError, NotFound, VersionConflict

START_S = 900  # `make test-long` may share the machine, or be stopped for a while
WORDS = ["red", "blue", "green", "white", "lamp", "desk", "chair", "new", "thing", "unheard"]
ids = st.sampled_from([f"item-{n}" for n in range(0, 40, 5)] + [f"new-{n}" for n in range(12)])
titles = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
metadata = st.dictionaries(st.sampled_from(["price", "tag"]), st.integers(0, 9) | st.sampled_from(["a", "b"]))
puts = st.builds(Put, ids, titles, titles, metadata, st.none() | st.integers(0, 50), st.booleans())
values = st.fixed_dictionaries(
    {},
    optional={
        "title": titles,
        "metadata": st.dictionaries(st.sampled_from(["price", "tag"]), st.none() | st.integers(0, 9)),
        "popularity": st.integers(0, 50),
        "is_available": st.booleans(),
    },
)
operations = puts | st.builds(Patch, ids, values) | st.builds(Delete, ids)


class Machine(RuleBasedStateMachine):
    """Two replicas and the model; `bundle`, `url` and `fold_after` are set by the test."""

    bundle = url = None
    num_steps = 0

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.catalogues = []
        self.version = 0
        self.model = {
            item["item_id"]: {
                "title": item["title"],
                "description": item["description"],
                "metadata": json.loads(item["metadata"]),
                "popularity": item["popularity"],
                "is_available": True,
                "version": 0,
            }
            for item in self.bundle.items.to_dicts()
        }

    @initialize()
    def start(self):
        self.runner.run(self._start(0))
        self.runner.run(self._start(1))

    async def _start(self, place):
        data_dir = Path(self.directory.name) / str(place)
        catalogue = Catalogue(self.bundle, redis_url=self.url, data_dir=data_dir, timeout_s=5)
        catalogue.start()
        async with asyncio.timeout(START_S):
            while catalogue.status.state != "ready":
                await asyncio.sleep(0.002)
        self.catalogues.insert(place, catalogue)

    @rule(place=st.integers(0, 1), operation=operations)
    def change(self, place, operation):
        """One operation; what the model cannot do, the catalogue must refuse."""
        after, error = self._expected([operation])
        self._write(place, [operation], after, error)

    @rule(place=st.integers(0, 1), several=st.lists(operations, min_size=2, max_size=6))
    def change_several(self, place, several):
        """All or nothing."""
        after, error = self._expected(several)
        self._write(place, several, after, error)

    @rule(place=st.integers(0, 1), several=st.lists(operations, min_size=2, max_size=6))
    def change_some(self, place, several):
        """Leaving out what cannot be done."""
        done = []
        after = self.model
        for operation in several:
            changed, error = self._expected([operation], after)
            if error is None:
                after = changed
                done.append(operation)
        self._write(place, several, after, None, skip_refused=True, is_empty=not done)

    @rule(place=st.integers(0, 1), item_id=ids, is_stale=st.booleans())
    def change_if_unchanged(self, place, item_id, is_stale):
        """A condition on the version."""
        version = self.model.get(item_id, {"version": 77})["version"] + is_stale
        operation = Patch(item_id, {"popularity": 7}, if_version=version)
        after, error = self._expected([operation])
        if error is None and is_stale:
            error = VersionConflict
        self._write(place, [operation], after, error)

    @rule(place=st.integers(0, 1))
    def restart(self, place):
        """A replica that comes back replays everything."""
        Machine.num_steps += 1

        async def again():
            await self.catalogues.pop(place).close()
            await self._start(place)

        self.runner.run(again())

    @invariant()
    def replicas_equal_the_model(self):
        if len(self.catalogues) == 2:
            self.runner.run(self._check())

    async def _check(self):
        for catalogue in self.catalogues:
            assert await catalogue._catch_up()
            assert catalogue.version == self.version
            live = catalogue.replica.live
            found = await live.get_many([*self.model, *(f"new-{n}" for n in range(12))])
            assert found.keys() == self.model.keys()
            for item_id, expected in self.model.items():
                assert {name: getattr(found[item_id], name) for name in expected} == expected
            assert live.num_items == len(self.model)
            snapshot = catalogue.snapshot  # perhaps of before: but nothing in it that is gone
            for row, item_id in enumerate(snapshot.item_ids(range(snapshot.num_items))):
                record = found.get(item_id)
                is_right = record and record.is_available and record.codes == snapshot.codes_of(row)
                assert bool(is_right) == (row not in snapshot.hidden_rows)
            await self._check_rebuilt(catalogue, found)
        one, other = self.catalogues
        assert one.replica.live.digest_lines() == other.replica.live.digest_lines()
        assert one.snapshot.item_ids(range(one.snapshot.num_items)) == other.snapshot.item_ids(
            range(other.snapshot.num_items)
        )

    async def _check_rebuilt(self, catalogue, found):
        await catalogue.replica.rebuild()
        snapshot = catalogue.snapshot
        rows = snapshot.item_ids(range(snapshot.num_items))
        shown = [record for record in found.values() if record.is_available]
        key = {r.item_id: (r.codes, -r.popularity, r.item_id) for r in shown}
        assert rows == sorted(key, key=key.__getitem__) and not len(snapshot.hidden_rows)
        by_sid = {}
        for record in found.values():
            by_sid.setdefault(record.codes, []).append(record.item_id)
        shared = [sorted(names) for names in by_sid.values() if len(names) > 1]
        assert shared in ([], [["item-0", "item-1"]])  # those two share theirs in the bundle
        popular = [record.popularity for record in (found[rows[row]] for row in snapshot.popular_rows)]
        assert popular == sorted(popular, reverse=True)

    def _expected(self, several, before=None):
        """The model afterwards, and the error that is due instead."""
        after = {item_id: dict(item) for item_id, item in (before or self.model).items()}
        for operation in several:
            old = after.get(operation.item_id)
            if isinstance(operation, Put):
                popularity = operation.popularity
                after[operation.item_id] = {
                    "title": operation.title,
                    "description": operation.description,
                    "metadata": operation.metadata,
                    "popularity": popularity if popularity is not None else old["popularity"] if old else 0,
                    "is_available": operation.is_available,
                    "version": self.version + 1,
                }
            elif old is None:
                return self.model, NotFound
            elif isinstance(operation, Delete):
                del after[operation.item_id]
            else:
                changes = dict(operation.values)
                if "metadata" in changes:
                    merged = old["metadata"] | changes["metadata"]
                    changes["metadata"] = {name: value for name, value in merged.items() if value is not None}
                after[operation.item_id] = old | changes | {"version": self.version + 1}
        return after, None

    def _write(self, place, several, after, error, *, skip_refused=False, is_empty=False):
        Machine.num_steps += len(several)
        catalogue = self.catalogues[place]
        try:
            self.runner.run(catalogue.write(several, skip_refused=skip_refused))
        except (NotFound, VersionConflict) as found:
            conflicting = isinstance(found, VersionConflict) and several[0].if_version is not None
            assert error is type(found) or conflicting
            return
        except CatalogueError as found:
            assert "all semantic IDs" in str(found)  # 64 IDs and at most 52 items: some are only held back
            return
        assert error is None
        if not is_empty:
            self.model, self.version = after, self.version + 1

    def teardown(self):
        for catalogue in self.catalogues:
            self.runner.run(catalogue.close())
        self.runner.close()
        self.directory.cleanup()


def run(bundle, server, monkeypatch, *, examples, steps):
    monkeypatch.setattr(replica, "FOLD_AFTER", 8)
    monkeypatch.setattr("service.catalogue.update_log.KEPT_ENTRIES", 2)
    monkeypatch.setattr("service.catalogue.update_log.PIECE", 2)

    class OnServer(Machine):
        def __init__(self):
            server.flush()
            super().__init__()

    OnServer.bundle, OnServer.url = bundle, server.url
    Machine.num_steps = 0
    run_state_machine_as_test(
        OnServer,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return Machine.num_steps


def test_any_sequence_of_changes(small_bundle, clean_redis, monkeypatch):
    assert run(small_bundle, clean_redis, monkeypatch, examples=5, steps=15) >= 50


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_changes(small_bundle, clean_redis, monkeypatch):
    assert run(small_bundle, clean_redis, monkeypatch, examples=180, steps=40) >= 10_000
