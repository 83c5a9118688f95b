"""DER as trees that can be changed anywhere, with all lengths made right again.
Standard: X.690, definite lengths, tag numbers up to 30.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from relay.formats.cms.der import header

Node = tuple[int, "bytes | list[Node]"]
"""Identifier octet, and contents: octets where primitive, elements where constructed."""
Path = tuple[int, ...]

VERSION, RECIPIENTS, CONTENT, TAG = (1, 0, 0), (1, 0, 1), (1, 0, 2), (1, 0, 3)
"""Where the parts of an AuthEnvelopedData are, seen from its ContentInfo."""
ALGORITHM, CIPHERTEXT = (*CONTENT, 1), (*CONTENT, 2)
SIGNED_CONTENT, SIGNER = (1, 0, 2), (1, 0, 4, 0)
"""Where the parts of a SignedData with certificates are."""


def parsed(der: bytes) -> Node:
    """The one element in `der`."""
    node, end = _parsed(der, 0)
    assert end == len(der)
    return node


def _parsed(der: bytes, start: int) -> tuple[Node, int]:
    tag, length, body = der[start], der[start + 1], start + 2
    if length > 0x80:
        number = length & 0x7F
        length, body = int.from_bytes(der[body : body + number]), body + number
    end = body + length
    if not tag & 0x20:
        return (tag, der[body:end]), end
    children: list[Node] = []
    while body < end:
        child, body = _parsed(der, body)
        children.append(child)
    return (tag, children), end


def encoded(node: Node) -> bytes:
    """The tree as DER."""
    tag, contents = node
    inside = contents if isinstance(contents, bytes) else b"".join(map(encoded, contents))
    return header(tag, len(inside)) + inside


def at(der: bytes, path: Path) -> Node:
    """The element there."""
    node = parsed(der)
    for index in path:
        node = node[1][index]  # type: ignore[assignment]
    return node


def changed(der: bytes, path: Path, change: Callable[[Node], list[Node]]) -> bytes:
    """`der` with the element at `path` replaced by what `change` makes of it: none, one or several."""
    tag, contents = parsed(der)
    assert not isinstance(contents, bytes)
    return encoded((tag, _changed(contents, path, change)))


def _changed(children: list[Node], path: Path, change: Callable[[Node], list[Node]]) -> list[Node]:
    index, *rest = path
    child = children[index]
    if not rest:
        return [*children[:index], *change(child), *children[index + 1 :]]
    tag, contents = child
    assert not isinstance(contents, bytes)
    return [*children[:index], (tag, _changed(contents, tuple(rest), change)), *children[index + 1 :]]


def put(der: bytes, path: Path, *elements: bytes) -> bytes:
    """These elements in place of the one at `path`."""
    return changed(der, path, lambda _: [parsed(element) for element in elements])


def doubled(der: bytes, path: Path, times: int = 2) -> bytes:
    """The element at `path` several times."""
    return changed(der, path, lambda node: [node] * times)


def followed(der: bytes, path: Path, element: bytes) -> bytes:
    """One more element after the one at `path`."""
    return changed(der, path, lambda node: [node, parsed(element)])


def paths(node: Node, here: Path = ()) -> Iterator[Path]:
    """Every element below `node`, the outer before the inner."""
    contents = node[1]
    if not isinstance(contents, bytes):
        for index, child in enumerate(contents):
            yield (*here, index)
            yield from paths(child, (*here, index))
