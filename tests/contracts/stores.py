"""The contract of a store for results."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweep.remote import Store


class StoreContract:
    """What the mirrors of sweeps and trials ask of a `sweep.remote.Store`.

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self) -> Store:
            return MyStore("mine://bucket/folder")    # empty
    """

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError

    def test_what_is_written_is_read_and_replaced_as_a_whole(self, store: Store) -> None:
        store.write("trials/0000/epoch.csv", b"one")
        store.write("trials/0000/epoch.csv", b"")
        assert store.read("trials/0000/epoch.csv") == b""
        assert store.read("trials/0000") is None
        assert store.read("nothing") is None

    def test_only_one_makes_an_object(self, store: Store) -> None:
        assert store.create("driver.lock", b"first")
        assert not store.create("driver.lock", b"second")
        assert store.read("driver.lock") == b"first"
        store.remove(["driver.lock"])
        assert store.create("driver.lock", b"third")

    def test_a_file_is_sent_and_fetched_and_a_failed_fetch_leaves_the_old_one(
        self, store: Store, tmp_path: Path
    ) -> None:
        sent, fetched = tmp_path / "sent", tmp_path / "new" / "fetched"
        sent.write_bytes(bytes(range(256)) * 1000)
        store.send(sent, "trials/0000/last.pt")
        store.fetch("trials/0000/last.pt", fetched)
        assert fetched.read_bytes() == sent.read_bytes()
        with pytest.raises(Exception, match=r"results: .*: cannot read nothing"):
            store.fetch("nothing", fetched)
        assert fetched.read_bytes() == sent.read_bytes()
        assert list(fetched.parent.iterdir()) == [fetched]

    def test_objects_and_folders_are_listed_at_once_by_names_below_the_store(self, store: Store) -> None:
        assert store.sizes() == {}
        for name in ("spec.yaml", "trials/0000/epoch.csv", "trials/0001/epoch.csv"):
            store.write(name, name.encode())
        assert store.sizes() == {
            name: len(name) for name in ("spec.yaml", "trials/0000/epoch.csv", "trials/0001/epoch.csv")
        }
        assert store.sizes("trials/0001") == {"trials/0001/epoch.csv": 21}
        assert sorted(store.folders("trials")) == ["0000", "0001"]
        assert store.folders("nothing") == []
        store.remove(["spec.yaml", "nothing"])
        assert "spec.yaml" not in store.sizes()

    def test_of_several_objects_those_that_are_there_are_read(self, store: Store) -> None:
        store.write("a", b"1")
        store.write("b", b"2")
        assert store.read_all(["a", "nothing", "b"]) == {"a": b"1", "b": b"2"}
        assert store.read_all([]) == {}

    def test_the_age_of_an_object_is_by_the_stores_clock(self, store: Store) -> None:
        assert store.age_s("nothing") is None
        store.write("beat", b"")
        age = store.age_s("beat")
        assert age is not None
        assert age >= 0.0
        assert list(store.sizes()) == ["beat"]

    def test_a_check_leaves_nothing(self, store: Store) -> None:
        store.check()
        assert store.sizes() == {}
