"""`cifar_lab.serve`: what its endpoint answers, to whom, and at what price."""

from __future__ import annotations

import base64
import http.client
import io
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_lab import load_run
from cifar_lab.config.port import HOST
from cifar_lab.data.pictures import read_picture
from cifar_lab.data.synthetic import make_synthetic
from cifar_lab.inference.figures import overlaid
from cifar_lab.inference.prediction import activation_maps
from cifar_lab.inference.serving.answers import Example, base_name, examples_of
from cifar_lab.inference.serving.app import Limits
from cifar_lab.inference.serving.guard import SENT
from cifar_lab.run.load import Run
from tests.support.serving import FORM, RAW, asked, bomb, form, png, replied, serving_here

PIXELS = make_synthetic(train_size=20, test_size=12, data_seed=1).test.images
PICTURE = png(PIXELS[3])
MIB = 2**20


@pytest.fixture(scope="module")
def run(finished: Path) -> Run:
    return load_run(finished)


@pytest.fixture(scope="module")
def port(run: Run) -> Iterator[int]:
    with serving_here(run, examples=examples_of(run)) as found:
        yield found


@pytest.fixture
def changed(run: Run) -> Run:
    """The run with a network of its own, to be spoilt."""
    return load_run(run.folder)


def decoded(text: str) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image).transpose(2, 0, 1)


def test_the_answer_is_the_models(run: Run, port: int) -> None:
    for size in ((32, 32), (80, 60)):  # (width, height)
        content = io.BytesIO()
        Image.fromarray(PIXELS[5].transpose(1, 2, 0)).resize(size).save(content, "JPEG")
        reply = asked(port, "/predict?top=10", content.getvalue())
        assert reply.status == 200
        expected = run.predict(read_picture(content.getvalue(), run.image_size))[0]
        by_name = {one["class"]: one["probability"] for one in reply.fields["top"]}
        assert [by_name[name] for name in run.classes] == expected.tolist()
        given = [one["probability"] for one in reply.fields["top"]]
        assert given == sorted(given, reverse=True)
        assert reply.fields["checkpoint"] == run.digest
        assert [reply.fields[key] for key in ("input_png", "map_png", "note")] == [None] * 3


def test_a_form_and_plain_bytes_are_answered_alike(port: int) -> None:
    raw = asked(port, content=PICTURE).fields
    assert raw["file"] is None
    assert len(raw["top"]) == 5
    for kind in ("application/octet-stream", "image/whatever", "IMAGE/PNG; x=y"):
        assert asked(port, content=PICTURE, headers={"Content-Type": kind}).fields == raw
    assert asked(port, content=PICTURE, headers={}).fields == raw
    content = form(("note", None, b"x"), ("file", "cat.png", PICTURE))
    assert asked(port, content=content, headers=FORM).fields == {**raw, "file": "cat.png"}


def test_the_input_and_the_map_are_what_predict_draws(run: Run, port: int) -> None:
    found = asked(port, "/predict?input=true&explain=true&top=1", PICTURE).fields
    np.testing.assert_array_equal(decoded(found["input_png"]), PIXELS[3])
    best = run.classes.index(found["top"][0]["class"])
    (seen,) = activation_maps(run, PIXELS[3:4], [best])
    np.testing.assert_array_equal(decoded(found["map_png"]), overlaid(PIXELS[3], seen))
    assert (found["note"] is None) == bool(seen.any())


def test_a_network_without_a_map_answers_and_says_so(changed: Run) -> None:
    changed.model.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    with serving_here(changed) as port:
        found = asked(port, "/predict?explain=true", PICTURE).fields
    assert found["map_png"] is None
    assert "no layer of this network has a map" in found["note"]
    assert len(found["top"]) == 5


def test_a_number_that_is_none_is_no_answer(changed: Run, caplog: pytest.LogCaptureFixture) -> None:
    next(iter(changed.model.parameters())).data.fill_(float("nan"))
    with serving_here(changed) as port:
        reply = asked(port, content=PICTURE)
    assert reply.status == 500
    assert "the network's answer is no number" in reply.error
    assert "POST /predict failed" in caplog.text


# --- what is no picture, and what is no request ------------------------------------------------


@pytest.mark.parametrize(
    ("content", "headers", "status", "said"),
    [
        (form(("file", "cat.png", b"a text")), FORM, 422, "cat.png: is no readable picture; must"),
        (form(("file", "cat.png", b"")), FORM, 422, "cat.png: is empty"),
        (form(("file", "cat.png", PICTURE[:300])), FORM, 422, "cat.png: is no readable picture"),
        (form(("file", "b.png", bomb())), FORM, 422, "b.png: is no readable picture (Image size"),
        (form(("file", "", PICTURE)), FORM, 200, '"file":null'),
        (form(("file", "../../etc/passwd", b"x")), FORM, 422, "passwd: is no readable picture"),
        (form(("file", "C:\\\\x\\\\cat.png", b"x")), FORM, 422, '{"error":"cat.png: is no'),
        (form(("file", "<b>\u202ecat", b"x")), FORM, 422, '{"error":"<b>cat: is no'),
        (form(("file", "a" * 200, b"x")), FORM, 422, f'"{"a" * 100}: is no readable'),
        (form(("file", None, b"x")), FORM, 400, "the form holds no file; send multipart/form-data"),
        (form(), FORM, 400, "the form holds no file"),
        (form(("a", "a", b""), ("b", "b", b"")), FORM, 400, "Maximum number of files is 1"),
        (form(*[("a", None, b"")] * 9), FORM, 400, "Maximum number of fields is 8"),
        (b"no form", FORM, 400, "Invalid multipart data"),
        (b"", FORM, 400, "form"),
        (PICTURE, {"Content-Type": "multipart/form-data"}, 400, "Missing boundary"),
        (b"", RAW, 400, "the request is empty"),
        (b"a text", RAW, 422, "picture: is no readable picture; must be PNG, JPEG"),
        (bomb(), RAW, 422, "picture: is no readable picture (Image size (1600000000 pixels)"),
        (b"GIF89a\xff\xff\xff\xff", RAW, 422, "picture: "),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", RAW, 422, "is no readable picture"),
        (b"{}", {"Content-Type": "application/json"}, 415, "Content-Type=application/json: can't"),
        (b"x", {"Content-Type": "text/plain"}, 415, "Content-Type=text/plain: can't be read; send"),
        (b"x", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "can't be read; send"),
        (b"x" * (20 * MIB + 1), RAW, 413, "the request has more than 20 MiB"),
    ],
)
def test_what_can_not_be_answered_is_one_line(
    port: int,
    content: bytes,
    headers: dict[str, str],
    status: int,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reply = asked(port, content=content, headers=headers)
    assert reply.status == status
    assert said in reply.content.decode()
    if status != 200:
        assert reply.error
    assert reply.headers["content-type"] == "application/json"
    assert caplog.text == ""
    assert asked(port, content=PICTURE).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("POST", "/predict?top=0", 422, "top=0: input should be greater than or equal to 1"),
        ("POST", "/predict?top=x", 422, "top=x: input should be a valid integer"),
        ("POST", "/predict?explain=maybe", 422, "explain=maybe: input should be a valid boolean"),
        ("GET", "/predict", 405, "GET /predict: Method Not Allowed; see /docs"),
        ("PUT", "/predict", 405, "PUT /predict: "),
        ("OPTIONS", "/predict", 405, "OPTIONS /predict: "),
        ("DELETE", "/", 405, "DELETE /: "),
        ("GET", "/nowhere", 404, "GET /nowhere: Not Found; see /docs"),
        ("GET", "/examples/99.png", 404, "Not Found"),
        ("GET", "/examples/../page.css", 404, "Not Found"),
        ("GET", "/../../../../etc/passwd", 404, "Not Found"),
        ("GET", "/examples/%2e%2e/%2e%2e/etc/passwd", 404, "Not Found"),
        ("GET", "/examples/..%5c..%5crun.json", 404, "Not Found"),
        ("GET", "//evil.example/page.js", 404, "Not Found"),
        ("GET", "/page.js/", 404, "Not Found"),
        ("GET", "/app.py", 404, "Not Found"),
        ("GET", "/" + "a" * 9000, 404, "Not Found"),
    ],
)
def test_what_is_asked_wrongly(port: int, method: str, path: str, status: int, said: str) -> None:
    reply = asked(port, path, PICTURE if method == "POST" else None, method=method)
    assert (reply.status, said in reply.error) == (status, True), reply.content
    assert len(reply.content) < 400


def test_bytes_that_are_no_request_end_their_own_connection_alone(port: int) -> None:
    for sent in (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 40_000):
        with socket.create_connection((HOST, port), timeout=5) as raw:
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(65536):
                pass
    assert asked(port, content=PICTURE).status == 200


@pytest.mark.parametrize(
    ("first", "more", "status"),
    [
        ("POST /predict", "Content-Length: 1\r\nContent-Length: 2", 400),
        ("POST /predict", "Content-Length: -1", 400),
        ("GET /", "Host: evil.example", 400),
        ("GET http://evil.example/", "X: y", 404),
        ("CONNECT evil.example:443", "X: y", 404),
        ("TRACE /", "X: y", 405),
        ("GET /%00", "X: y", 404),
        ("GET /%ff", "X: y", 404),
    ],
)
def test_requests_with_two_meanings_have_none(
    port: int, first: str, more: str, status: int
) -> None:
    with socket.create_connection((HOST, port), timeout=5) as raw:
        head = f"{first} HTTP/1.1\r\nHost: {HOST}:{port}\r\n{more}\r\nConnection: close\r\n\r\n"
        raw.sendall(head.encode())
        assert raw.recv(1000).startswith(f"HTTP/1.1 {status} ".encode())


def test_the_last_part_of_a_name_is_shown() -> None:
    names = ("a/b.png", "a\\b.png", "/", "..", "", "\x00b.png\n", "jörg.png")
    assert [base_name(n) for n in names] == [
        *("b.png", "b.png", None, "..", None, "b.png", "jörg.png")
    ]


# --- who may ask ------------------------------------------------------------------------------


def test_every_answer_forbids_what_comes_from_elsewhere(port: int) -> None:
    for path, content in (
        *[(path, None) for path in ("/", "/docs", "/openapi.json", "/page.js", "/nowhere")],
        ("/examples/0.png", None),
        ("/predict", PICTURE),
        ("/predict", b"x"),
    ):
        headers = asked(port, path, content).headers
        lowered = {name.lower(): value for name, value in headers.items()}
        assert {name.lower(): lowered.get(name.lower()) for name in SENT} == {
            name.lower(): value for name, value in SENT.items()
        }
        assert not [name for name in lowered if name.startswith("access-control")]
        assert "server" not in lowered
    policy = SENT["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert not re.search("[*]|http", policy)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "evil.example:{port}",
            "127.0.0.1",
            "127.0.0.1:1",
            "localhost.evil:{port}",
        ),
        *("127.0.0.1:{port}.evil.example", "evil@127.0.0.1:{port}", "0.0.0.0:{port}", ""),
        *("127.1:{port}", "[::ffff:127.0.0.1]:{port}", "a" * 9000),
    ],
)
def test_another_name_that_leads_here_is_refused(port: int, host: str) -> None:
    """DNS rebinding: the page of evil.example asks its own name, which now means 127.0.0.1."""
    for path, content in (("/", None), ("/predict", PICTURE), ("/examples/0.png", None)):
        reply = asked(port, path, content, {**RAW, "Host": host.format(port=port)})
        assert reply.status == 403
        assert reply.error.startswith("Host=")
        assert f"must be 127.0.0.1:{port} or localhost:{port}" in reply.error


def test_this_machines_names_are_answered(port: int) -> None:
    for name in ("127.0.0.1", "localhost", "LocalHost", "[::1]"):
        host = f"{name}:{port}"
        assert asked(port, "/", headers={"Host": host}).status == 200
        headers = {**RAW, "Host": host, "Origin": f"http://{host}"}
        assert asked(port, content=PICTURE, headers=headers).status == 200


def test_a_request_without_a_host_is_refused(port: int) -> None:
    with socket.create_connection((HOST, port), timeout=5) as raw:
        raw.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:{port}.evil.example"},
        {"Origin": "http://localhost:{port}"},  # another name than the request's Host
        {"Origin": "http://127.0.0.1:1"},  # another server of this machine
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {
            "Sec-Fetch-Site": "cross-site",
            "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-Dest": "document",
        },
    ],
)
def test_a_page_of_another_site_may_not_ask(port: int, headers: dict[str, str]) -> None:
    given = {name: value.format(port=port) for name, value in headers.items()}
    for content, kind in ((PICTURE, RAW), (form(("file", "a", PICTURE)), FORM)):
        reply = asked(port, content=content, headers={**kind, **given})
        assert reply.status == 403
        assert reply.error == "a page of another site may not ask here"


def test_another_sites_page_may_link_here_and_no_more(port: int) -> None:
    link = {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    assert asked(port, "/", headers=link).status == 200
    for more in ({"Sec-Fetch-Dest": "iframe"}, {"Sec-Fetch-Mode": "no-cors"}):
        for path in ("/", "/examples/0.png", "/page.js", "/openapi.json"):
            assert asked(port, path, headers={**link, **more}).status == 403


# --- what a request may cost -------------------------------------------------------------------


def test_what_is_too_large_is_refused_before_it_is_sent(port: int) -> None:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Type", "image/png")
    connection.putheader("Content-Length", str(100 * 10**6))
    connection.endheaders()
    reply = replied(connection)  # not a byte of it was sent
    connection.close()
    assert (reply.status, reply.error) == (413, "the request has more than 20 MiB")


@pytest.mark.parametrize("kind", ["image/png", FORM["Content-Type"]])
def test_what_turns_out_too_large_is_refused_while_it_is_read(run: Run, kind: str) -> None:
    head = form(("file", "a.png", b"")).rpartition(b"\r\n--")[0]
    with serving_here(run, limits=Limits(bytes=MIB)) as port:
        connection = http.client.HTTPConnection(HOST, port, timeout=10)
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Type", kind)
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        for part in (head, bytes(MIB - len(head)), b"1"):
            connection.send(b"%x\r\n%s\r\n" % (len(part), part))
        reply = replied(connection)  # and it never ends
        connection.close()
        assert (reply.status, reply.error) == (413, "the request has more than 1 MiB")
        assert asked(port, content=bytes(MIB)).status == 422  # as large as may be
        assert asked(port, content=PICTURE).status == 200


def test_a_picture_that_is_sent_too_slowly_is_given_up(run: Run) -> None:
    with serving_here(run, limits=Limits(seconds=0.2)) as port:
        connection = http.client.HTTPConnection(HOST, port, timeout=10)
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Type", "image/png")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"x")
        reply = replied(connection)
        connection.close()
        assert (reply.status, reply.error) == (408, "the picture was not sent within 0.2 s")
        assert asked(port, content=PICTURE).status == 200


class Waiting(torch.nn.Module):
    """Answers as soon as it may."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.asked, self.may = threading.Event(), threading.Event()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.asked.set()
        assert self.may.wait(20)
        logits: torch.Tensor = self.network(images)
        return logits


def test_what_takes_too_long_is_given_up_and_the_next_is_answered(changed: Run) -> None:
    changed.model.network = slow = Waiting(changed.model.network)
    with serving_here(changed, limits=Limits(seconds=0.2)) as port:
        for _ in range(2):  # the second waits for the first
            reply = asked(port, content=PICTURE)
            assert (reply.status, reply.error) == (504, "no answer within 0.2 s")
        slow.may.set()
        assert asked(port, content=PICTURE).status == 200


def test_more_at_a_time_than_can_wait_are_told_to_come_again(changed: Run) -> None:
    changed.model.network = slow = Waiting(changed.model.network)
    with serving_here(changed, limits=Limits(waiting=1)) as port:
        replies = []
        first = threading.Thread(target=lambda: replies.append(asked(port, content=PICTURE)))
        first.start()
        assert slow.asked.wait(10)
        reply = asked(port, content=PICTURE)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert reply.error == "1 requests are being answered; ask again"
        assert asked(port, "/").status == 200  # the page goes on
        slow.may.set()
        first.join(10)
        assert [one.status for one in replies] == [200]
        assert asked(port, content=PICTURE).status == 200


def test_at_the_end_whoever_waits_is_told(changed: Run) -> None:
    changed.model.network = slow = Waiting(changed.model.network)
    replies = []
    with serving_here(changed) as port:
        waits = threading.Thread(target=lambda: replies.append(asked(port, content=PICTURE)))
        waits.start()
        assert slow.asked.wait(10)
    waits.join(10)
    assert [(one.status, one.error) for one in replies] == [(503, "the server is ending")]
    slow.may.set()


def test_who_hangs_up_is_not_waited_for(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with serving_here(run, limits=Limits(waiting=1)) as port:
        for _ in range(5):
            with socket.create_connection((HOST, port), timeout=5) as raw:
                head = (
                    f"POST /predict HTTP/1.1\r\nHost: {HOST}:{port}\r\nContent-Length: 9\r\n\r\nx"
                )
                raw.sendall(head.encode())
        status = 503
        for _ in range(100):
            status = asked(port, content=PICTURE).status
            if status == 200:
                break
            time.sleep(0.02)
    assert status == 200
    assert caplog.text == ""


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_two_clients_at_a_time_lose_no_request(run: Run, port: int, seconds: int) -> None:
    """Each asks for its own pictures and gets their answers."""
    expected = [run.predict(pixels)[0] for pixels in PIXELS]
    counts, wrong = [0, 0], []
    end = time.monotonic() + seconds

    def ask(client: int) -> None:
        connection = http.client.HTTPConnection(HOST, port, timeout=20)
        while time.monotonic() < end:
            index = (2 * counts[client] + client) % len(PIXELS)
            content = form(("file", f"{index}.png", png(PIXELS[index])))
            connection.request("POST", "/predict?top=1&explain=true", content, FORM)
            reply = replied(connection)
            best = int(expected[index].argmax())
            right = reply.status == 200 and reply.fields["file"] == f"{index}.png"
            if not right or reply.fields["top"] != [
                {"class": run.classes[best], "probability": float(expected[index][best])}
            ]:
                wrong.append(reply)
            counts[client] += 1
        connection.close()

    clients = [threading.Thread(target=ask, args=(client,)) for client in (0, 1)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(seconds + 20)
    assert wrong == []
    assert min(counts) > 3


# --- what describes it -------------------------------------------------------------------------


class References(HTMLParser):
    """What a page loads or leads to, and the text in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [v or "" for k, v in attrs if k in ("src", "href", "action", "srcset")]
        self.scripts += tag == "script"
        self.text += " " * (tag in ("td", "th", "p", "h2", "h3"))
        assert not [k for k, _ in attrs if k == "style" or k.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_pages_load_nothing_from_elsewhere(port: int) -> None:
    for path in ("/", "/docs"):
        page = References(asked(port, path).content.decode())
        for reference in page.found:
            assert re.match("/(?!/)|#|data:,$", reference), reference
            if reference.startswith("/"):
                assert asked(port, reference).status == 200
    for path in ("/page.js", "/page.css"):
        assert b"http" not in asked(port, path).content.replace(b"${location.origin}", b"")


def test_the_page_of_the_endpoint_says_all_that_the_schema_says(port: int) -> None:
    api = asked(port, "/openapi.json").fields
    assert list(api["paths"]) == ["/predict"]
    asking = api["paths"]["/predict"]["post"]
    assert set(asking["requestBody"]["content"]) == {
        *("multipart/form-data", "image/*", "application/octet-stream")
    }
    text = References(asked(port, "/docs").content.decode()).text
    names = [each["name"] for each in asking["parameters"]]
    assert names == ["top", "input", "explain"]
    for schema, fields in api["components"]["schemas"].items():
        names += [schema, *fields["properties"]]
    for word in (*names, *asking["responses"], *asking["requestBody"]["content"]):
        assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text), word
    for status in asking["responses"]:
        assert asking["responses"][status]["description"] in text


def test_the_examples_are_test_images_of_the_run(run: Run, port: int) -> None:
    from cifar_lab.inference.images import own_images

    test = own_images(run).dataset.test
    page = asked(port, "/").content.decode()
    for index, name in enumerate(run.classes):
        assert f'data-label="{name}"' in page
        with Image.open(io.BytesIO(asked(port, f"/examples/{index}.png").content)) as image:
            pixels = np.asarray(image).transpose(2, 0, 1)
        of_the_class = np.asarray(test.images)[test.labels == index]
        assert (pixels == of_the_class).all((1, 2, 3)).any()


def test_names_of_a_strangers_run_are_text(run: Run) -> None:
    evil = '"><script src=//evil.example></script>{{ 7 * 7 }}'
    classes = (evil, *run.classes[1:])
    data = run.record.data.model_copy(update={"classes": classes})
    strange = replace(
        run, record=run.record.model_copy(update={"data": data}), folder=Path("/x") / evil[:12]
    )
    example = Example(label=evil, png=PICTURE)
    with serving_here(strange, examples=[example]) as port:
        page = References(asked(port, "/").content.decode())
        assert page.scripts == 1
        assert "{{ 7 * 7 }}" in page.text
        found = asked(port, "/predict?top=10", PICTURE).fields
        assert evil in [one["class"] for one in found["top"]]
        assert References(asked(port, "/docs").content.decode()).scripts == 0
