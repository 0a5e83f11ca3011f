"""Pages: every item once, whatever comes and goes meanwhile; no message too large; no listing without end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arraylift.errors import Corruption, InvalidRequest
from arraylift.rpc import pages
from arraylift.sizes import MESSAGE_BYTES_MAX
from arraylift.v1 import backup_pb2 as pb

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)


class Directory:
    """A listing that a client asks for, page by page; ``before`` runs before each page is cut."""

    def __init__(self, paths: set[str], size: int) -> None:
        self.paths, self.size, self.link = paths, size, ""
        self.answers: list[pb.ListFilesResponse] = []

    def ask(self, request: pb.ListFilesRequest) -> pb.ListFilesResponse:
        def key(path: str) -> pages.Key:
            return (path,)

        listed = pages.rest(sorted(self.paths), pages.after(request.page_token, str), key)
        page, token = pages.cut(
            listed,
            request.page_size,
            key=key,
            to_pb=lambda path: pb.BackupFile(path=path, link_target=self.link),
        )
        answer = pb.ListFilesResponse(files=page, next_page_token=token)
        self.answers.append(answer)
        return answer

    def file(self, path: str) -> pb.BackupFile:
        return pb.BackupFile(path=path, link_target=self.link)

    def everything(self) -> list[str]:
        request = pb.ListFilesRequest(page_size=self.size)
        return [file.path for answer in pages.follow(self.ask, request) for file in answer.files]


@given(st.sets(names), st.integers(0, 5))
def test_all_pages_together_are_the_listing(paths: set[str], size: int) -> None:
    there = Directory(paths, size)
    assert there.everything() == sorted(paths)
    assert len(there.answers) == (max(1, -(-len(paths) // size)) if size else 1)


@given(st.sets(names, min_size=1), st.lists(st.tuples(names, names)), st.integers(1, 3))
def test_what_stays_is_seen_once(paths: set[str], changes: list[tuple[str, str]], size: int) -> None:
    """G2: names come and go between the pages."""
    there = Directory(set(paths), size)
    gone, came = set(), set()
    seen: list[str] = []
    for number, answer in enumerate(pages.follow(there.ask, pb.ListFilesRequest(page_size=size))):
        seen += [file.path for file in answer.files]
        if number < len(changes):
            out, new = changes[number]
            gone |= {out}
            came |= {new} - paths
            there.paths = (there.paths - {out}) | {new}
    assert len(seen) == len(set(seen))
    assert paths - gone <= set(seen) <= paths | came


def test_a_page_ends_before_a_message_does() -> None:
    there = Directory({f"/{number:05d}" + "x" * 4000 for number in range(3000)}, 0)
    assert len(there.everything()) == 3000
    assert len(there.answers) == 4
    assert max(answer.ByteSize() for answer in there.answers) < MESSAGE_BYTES_MAX


def test_an_item_larger_than_a_page_has_one_of_its_own() -> None:
    there = Directory({"a", "b", "c"}, 0)
    there.link = "x" * (pages.PAGE_BYTES_MAX + 1)
    assert there.everything() == ["a", "b", "c"]
    assert len(there.answers) == 3


@pytest.mark.parametrize(
    "token",
    ["x", "[", "{}", "[]", "[1]", '["a", "b"]', "[true]", '"a"', "[" * 60_000, '["' + "a" * 70_000 + '"]'],
)
def test_tokens_of_others_are_refused(token: str) -> None:
    with pytest.raises(InvalidRequest, match="not one of ours"):
        pages.after(token, str)


@pytest.mark.parametrize("token", ["[true]", "[1.0]", f"[{1 << 63}]", "[" + "9" * 5000 + "]"])
def test_numbers_are_those_that_a_store_keeps(token: str) -> None:
    with pytest.raises(InvalidRequest):
        pages.after(token, int)
    assert pages.after("[-9223372036854775808]", int) == (-(1 << 63),)


@pytest.mark.parametrize("tokens", [["a"], ["a", "b"]])
def test_a_peer_whose_pages_lead_nowhere_is_not_followed_for_ever(
    tokens: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PAGES_MAX", 50)
    asked: list[Any] = []

    def ask(request: pb.ListFilesRequest) -> pb.ListFilesResponse:
        asked.append(request)
        return pb.ListFilesResponse(next_page_token=tokens[len(asked) % len(tokens)])

    request = pb.ListFilesRequest(path="/")
    with pytest.raises(Corruption, match="does not end"):
        list(pages.follow(ask, request))
    assert len(asked) <= 50
    assert request.page_token == "", "the caller's request is his own"
    assert {one.path for one in asked} == {"/"}


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), max_size=20), st.integers(0, 5)
)
def test_a_page_of_frames_is_the_page_of_messages(texts: list[str], size: int) -> None:
    files = sorted((pb.BackupFile(path=text) for text in texts), key=lambda file: file.path)

    def key(file: pb.BackupFile) -> pages.Key:
        return (file.path,)

    page, token = pages.cut(files, size, key=key, to_pb=lambda file: file)
    field = pb.ListFilesResponse.FILES_FIELD_NUMBER
    joined, same = pages.cut_frames(files, size, key=key, to_frame=lambda file: pages.frame(field, file))
    assert list(pb.ListFilesResponse.FromString(joined).files) == page
    assert same == token


def test_a_page_of_frames_ends_before_a_message_does() -> None:
    files = [pb.BackupFile(path=f"{number:06d}" + "x" * 40_000) for number in range(200)]
    field = pb.ListFilesResponse.FILES_FIELD_NUMBER
    joined, token = pages.cut_frames(
        files, 0, key=lambda file: (file.path,), to_frame=lambda file: pages.frame(field, file)
    )
    assert token
    assert len(joined) <= pages.PAGE_BYTES_MAX < MESSAGE_BYTES_MAX
    assert list(pb.ListFilesResponse.FromString(joined).files) == files[: len(joined) // 40_000]
