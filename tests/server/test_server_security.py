"""What nobody may do: each is refused, and nothing is reached that was not allowed."""

import base64
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_kit import KEY, NAME, OTHER, Served, encoded, eventually, fault, picture
from source_kit import RtspCamera, Site, film, redirect, write_films
from test_server_live import closed
from websockets.exceptions import InvalidStatus

from infinitevl.errors import InfiniteVLError
from infinitevl.server import allowed as allowing
from infinitevl.server.allowed import Allowed, is_public, reach
from infinitevl.server.faults import NotAllowed, Unauthorized
from infinitevl.server.keys import Keys
from infinitevl.server.settings import Settings

QUICK = {"source_retry": (0.05, 0.1), "source_timeout": 1.0}


@pytest.fixture
def canary() -> Iterator[Site]:
    """A server that nobody may ask: it has what an attacker wants."""
    site = Site()
    site.pages = {"/secret.mp4": film(), "/secret.ts": film(kind="mpegts"), "/": film()}
    yield site
    site.close()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


# Keys

PATHS = [
    ("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/v1/streams"), ("POST", "/v1/streams"),
    ("GET", "/v1/streams/x"), ("GET", "/v1/snapshots"), ("GET", "/v1/snapshots/x"), ("GET", "/v1/info"),
    ("POST", "/v1/streams/x/ask"), ("POST", "/v1/streams/x/video"), ("GET", "/v1/streams/x/events"),
]  # fmt: skip


def test_without_a_key_nothing_is_told(serve):
    served = serve(keys=(KEY, OTHER))
    described = served.http.get("/openapi.json").json()["paths"]
    everything = [
        (method.upper(), path.format(id="x", name="x", watch="x"))
        for path, methods in described.items() if path.startswith("/v1") for method in methods
    ]  # fmt: skip
    assert set(PATHS) <= set(everything)
    for key in (None, "wrong-key-wrong", KEY[:-1], f"{KEY}x", "ключ"):
        with served.client(None) as client:
            if key is not None:
                client.headers = {"Authorization": f"Bearer {key}".encode()}
            for method, path in everything if key is None else PATHS:
                response = client.request(method, path, json={})
                assert fault(response, 401, "authentication")
                assert response.headers["www-authenticate"] == "Bearer"
    with served.client(None) as client:
        assert [client.get(path).status_code for path in ("/healthz", "/metrics", "/", "/openapi.json")] == [200] * 4


def test_another_keys_streams_and_snapshots_are_not_there(serve):
    served = serve(keys=(KEY, OTHER))
    id = served.open(name="mine")
    served.see(id, picture(0))
    assert served.http.post(f"/v1/streams/{id}/snapshots", json={"name": "mine"}).status_code == 201
    with served.client(OTHER) as other:
        assert other.get("/v1/streams").json()["data"] == [] == other.get("/v1/snapshots").json()["data"]
        described = served.http.get("/openapi.json").json()["paths"]
        tried = 0
        for path, methods in described.items():
            if "{id}" in path or "{name}" in path:
                for method in methods:
                    given: dict[str, Any] = {"json": body_for(path)}
                    response = other.request(method, path.format(id=id, name="mine", watch="x"), **given)
                    fault(response, 404, "not_found")
                    tried += 1
        assert tried > 15
        fault(other.post("/v1/streams", json={"snapshot": "mine"}), 404, "not_found")
        assert other.post("/v1/streams", json={}).status_code == 201
    assert served.http.get("/v1/snapshots/mine").status_code == 200
    kept = b"".join(path.read_bytes() for path in served.settings.folder.rglob("*") if path.is_file())
    assert KEY.encode() not in kept


def body_for(path: str) -> dict[str, Any]:
    if path.endswith(("/ask", "/watches")):
        return {"question": "?"}
    return {"url": "film.mp4"} if path.endswith("/source") else {"name": "a"} if path.endswith("/snapshots") else {}


def test_keys_are_told_apart():
    keys = Keys([KEY, OTHER])
    assert keys.owner(KEY) != keys.owner(OTHER) and keys.owners() == {keys.owner(KEY), keys.owner(OTHER)}
    assert KEY not in keys.owner(KEY)
    for wrong in (None, "", KEY[:-1], KEY + KEY, KEY.upper()):
        with pytest.raises(Unauthorized):
            keys.owner(wrong)


@pytest.mark.parametrize("key", ["short", "with space in it", "x" * 129, "schlüssel-lang"])
def test_keys_have_a_form(key: str, tmp_path: Path):
    with pytest.raises(InfiniteVLError, match="8 to 128"):
        Settings(NAME, tmp_path, keys=(key,))


# Browsers


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "169.254.1.1", "127.0.0.1.evil.example", "[", ""]
)
def test_names_that_lead_here_are_not_served_without_keys(served: Served, host: str):
    response = served.http.get("/v1/streams", headers={"Host": host})
    fault(response, 403, "permission")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.8.8.8:99", "[::1]:8000"])
def test_this_machine_is_served(served: Served, host: str):
    assert served.http.get("/v1/streams", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "file://", "["])
def test_pages_of_other_sites_are_refused(served: Served, origin: str):
    fault(served.http.post("/v1/streams", json={}, headers={"Origin": origin}), 403, "permission")
    own = served.http.get("/v1/streams", headers={"Origin": served.url})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers


def test_with_keys_any_name_is_served(serve):
    served = serve(keys=(KEY,))
    assert served.http.get("/v1/streams", headers={"Host": "camera.example"}).status_code == 200


# Paths


@pytest.mark.parametrize(
    "name", ["..", "../x", "%2e%2e%2fx", "a%2Fb", "a.b", "everybody.a", "a" * 65, "%00", "a%0a", "ä"]
)
def test_tricks_with_the_names_of_snapshots(served: Served, stream: str, name: str):
    for method in ("GET", "DELETE"):
        assert served.http.request(method, f"/v1/snapshots/{name}").status_code in (404, 405, 422)
    fault(served.http.post(f"/v1/streams/{stream}/snapshots", json={"name": name}), 422, "invalid_request")
    fault(served.http.post("/v1/streams", json={"snapshot": name}), 422, "invalid_request")


@pytest.mark.parametrize("id", ["..", "%2e%2e", "a%2Fb", "%00", "stream-x%0a", "*", "ä" * 200])
def test_tricks_with_the_ids_of_streams(served: Served, id: str):
    assert served.http.get(f"/v1/streams/{id}").status_code in (404, 405)
    assert served.http.delete(f"/v1/streams/{id}").status_code in (404, 405)


@pytest.mark.parametrize(
    "path", ["/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "//etc/passwd", "/.%00", "/%5c..%5capp.py"]
)
def test_tricks_with_the_pages_files(served: Served, path: str):
    connection = http.client.HTTPConnection(served.place)  # sends the path as it is
    connection.request("GET", path)
    response = connection.getresponse()
    assert response.status == 404 and b"import" not in response.read()
    connection.close()


# Sources


@pytest.fixture
def films(tmp_path: Path) -> Path:
    write_films(tmp_path / "films")
    (tmp_path / "outside.mp4").write_bytes(film())
    (tmp_path / "films" / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (tmp_path / "films" / "below").mkdir()
    (tmp_path / "films" / "below" / "film.mp4").write_bytes(film())
    (tmp_path / "films-too").mkdir()
    (tmp_path / "films-too" / "film.mp4").write_bytes(film())
    return tmp_path / "films"


def test_without_allowed_sources_there_are_none(served: Served, stream: str, films: Path):
    for url in (str(films / "film.mp4"), "film.mp4", "http://127.0.0.1/", "rtsp://camera/1", "-", "0", "/dev/video0"):
        fault(served.http.put(f"/v1/streams/{stream}/source", json={"url": url}), 403, "permission")
        fault(served.http.post("/v1/streams", json={"source": {"url": url}}), 403, "permission")
        parts = [{"type": "video_url", "video_url": {"url": url}}]
        given = {"model": NAME, "messages": [{"role": "user", "content": parts}]}
        fault(served.http.post("/v1/chat/completions", json=given), 403, "permission")
    assert served.look(stream)["source"] is None


@pytest.mark.parametrize("name", ["film.mp4", "below/film.mp4", "./film.mp4", "below/../film.mp4"])
def test_files_of_the_folder(films: Path, name: str):
    assert isinstance(Allowed([str(films)]).find(name), Path)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.mp4", "link.mp4", "below", ".", "..", "", "/etc/passwd", "below/../../outside.mp4", "nothing.mp4",
        "../films-too/film.mp4", "film.mp4\0", "file:film.mp4", "concat:film.mp4|film.mp4", "~/film.mp4",
    ],
)  # fmt: skip
def test_files_outside_of_the_folder(films: Path, name: str):
    with pytest.raises(NotAllowed):
        Allowed([str(films)]).find(name)
    with pytest.raises(NotAllowed):
        Allowed([str(films)]).find(str(films.parent / "outside.mp4"))


GOOD = [
    "https://host.example/a/b",
    "https://host.example:443/a/",
    "https://HOST.example/a",
    "https://u:p@host.example/a/b?c=d",
]


@pytest.mark.parametrize("url", GOOD)
def test_addresses_on_the_list(url: str):
    assert Allowed(["https://host.example/a/"]).find(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://host.example/a/b", "https://host.example:444/a/b", "https://host.example/ab", "https://host.example/",
        "https://other.example/a/b", "https://host.example.evil.example/a/b", "https://host.example@evil.example/a/b",
        "https://evil.example/https://host.example/a/", "https://host.example/a/../b", "https://host.example/a/%2e%2e/b",
        "https://host.example\\@evil.example/a/", "https://a@host.example@evil.example/a/", "https:///a/b",
        "https://host.example#@evil.example/a/", "https://evil.example?@host.example/a/", "file:///etc/passwd",
        "HTTPS://host.example/a/b", "https://host.example/a/\n", "https://host.example:x/a/", "https://[/a/",
        "https://host.example:0/a/b", "gopher://host.example/a/", "subfile,,start,0,end,9,,:https://host.example/a/b",
        "https://host.example/a/b|c", "concat:https://host.example/a/b", "tcp://host.example/a/", "https://ﬁ.example/a/",
    ],
)  # fmt: skip
def test_addresses_that_only_look_like_it(url: str):
    with pytest.raises(InfiniteVLError):
        Allowed(["https://host.example/a/"]).find(url)


def test_a_scheme_alone_allows_public_hosts_only(monkeypatch: pytest.MonkeyPatch):
    allowed, answers = Allowed(["https://", "http://10.0.0.5/"]), dict[str, list[str]]()
    lookup = lambda host, port, **_: [(0, 0, 0, "", (ip, port)) for ip in answers.get(host, [host])]  # noqa: E731
    monkeypatch.setattr(allowing.socket, "getaddrinfo", lookup)
    answers["good.example"] = ["93.184.216.34", "2606:2800:220:1::1"]
    assert reach(allowed.find("https://good.example/a")) == "93.184.216.34"  # pyright: ignore
    assert reach(allowed.find("http://10.0.0.5/a")) == "10.0.0.5"  # pyright: ignore
    answers["bad.example"] = ["93.184.216.34", "10.0.0.5"]
    for host in ("bad.example", "127.0.0.1", "10.0.0.5", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"):
        with pytest.raises(NotAllowed, match="own network"):
            reach(allowed.find(f"https://{host}/a"))  # pyright: ignore
    with pytest.raises(NotAllowed):
        allowed.find("http://good.example/a")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1",
        "2002:7f00:1::", "2001:0:4136:e378::1",
    ],
)  # fmt: skip
def test_addresses_of_inner_networks(address: str):
    assert not is_public(address)


def test_public_addresses():
    assert is_public("93.184.216.34") and is_public("2606:2800:220:1::1") and is_public("::ffff:8.8.8.8")


@pytest.mark.parametrize("entry", ["nothing-there", "ftp://host/", "https://host/../a"])
def test_entries_of_the_list_are_checked(entry: str):
    with pytest.raises(InfiniteVLError):
        Allowed([entry])


def failed(served: Served, url: str) -> str:
    """Why a source came to nothing."""
    id = served.open(source={"url": url, "realtime": False})
    assert eventually(lambda: served.look(id)["source"]["status"] == "failed"), served.look(id)
    told = served.look(id)
    assert told["stats"]["frames"] == 0
    return told["source"]["error"]


def test_redirects_lead_to_nothing_else(serve, site: Site, canary: Site):
    served = serve(sources=(f"{site.url}/a/",), **QUICK)
    site.pages["/a/good"] = redirect(f"{site.url}/a/film")
    site.pages["/a/film"] = film()
    site.pages["/a/out"] = redirect(f"{canary.url}/secret.mp4")
    site.pages["/a/up"] = redirect("/secret.mp4")
    site.pages["/secret.mp4"] = film()
    site.pages["/a/file"] = redirect("file:///etc/passwd")
    site.pages["/a/round"] = redirect(f"{site.url}/a/round")
    id = served.open(source={"url": f"{site.url}/a/good", "realtime": False})
    assert eventually(lambda: served.look(id)["source"]["status"] == "ended")
    for name in ("out", "up", "file"):
        assert "not among the sources" in failed(served, f"{site.url}/a/{name}") or name == "file"
    assert "redirects" in failed(served, f"{site.url}/a/round")
    assert canary.asked == [] and "/secret.mp4" not in site.asked


def test_rtsp_redirects_lead_to_nothing_else(serve):
    here, there = RtspCamera(), RtspCamera()
    here.mode = there.url
    served = serve(sources=(f"rtsp://{here.host}/",), **QUICK)
    id = served.open(source={"url": here.url})
    assert eventually(lambda: served.look(id)["source"]["status"] == "retrying")
    assert here.connections and not there.connections and served.look(id)["stats"]["frames"] == 0
    here.mode = "play"
    assert eventually(lambda: served.look(id)["source"]["status"] == "playing"), "it was the redirect that was refused"
    here.close(), there.close()


def playlists(canary: Site, secret: Path) -> dict[str, bytes]:
    """Files that name other places; FFmpeg by itself follows some of them."""
    hls = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n#EXTINF:1.5,\n{}\n#EXT-X-ENDLIST\n"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4">'
        '<Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>"
    )
    port = canary.url.split(":")[-1]
    sdp = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 26\n"
    return {
        "http.m3u8": hls.format(f"{canary.url}/secret.ts").encode(),
        "file.m3u8": hls.format(f"file://{secret}").encode(),
        "plain.m3u8": hls.format(secret).encode(),
        "list.ffconcat": f"ffconcat version 1.0\nfile '{secret}'\n".encode(),
        "http.ffconcat": f"ffconcat version 1.0\nfile '{canary.url}/secret.mp4'\n".encode(),
        "x.mpd": dash.format(f"{canary.url}/secret.mp4").encode(),
        "x.sdp": sdp.encode(),
        "x.asx": f'<asx version="3.0"><entry><ref href="{canary.url}/secret.mp4"/></entry></asx>'.encode(),
    }


def test_playlists_lead_to_nothing(serve, site: Site, canary: Site, films: Path):
    secret = films.parent / "secret.ts"
    secret.write_bytes(film(kind="mpegts"))
    served = serve(sources=(f"{site.url}/", str(films)), **QUICK)
    for name, data in playlists(canary, secret).items():
        (films / name).write_bytes(data)
        site.pages[f"/{name}"] = data
        assert failed(served, name) and failed(served, f"{site.url}/{name}")
        id = served.open()
        assert served.http.post(f"/v1/streams/{id}/video", content=data).status_code == 202
        assert eventually(lambda id=id: served.look(id)["source"]["status"] == "failed")
        url = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
        for part in (
            {"type": "video_url", "video_url": {"url": url}},
            {"type": "image_url", "image_url": {"url": url}},
        ):
            given = {"model": NAME, "messages": [{"role": "user", "content": [part]}]}
            fault(served.http.post("/v1/chat/completions", json=given), 400, "invalid_request")
    assert canary.asked == []


def test_the_tests_playlists_would_lead_somewhere(canary: Site, tmp_path: Path):
    """FFmpeg without our care follows at least these: the test above is not empty."""
    import av

    secret = tmp_path / "secret.ts"
    secret.write_bytes(film(kind="mpegts"))
    lists = playlists(canary, secret)
    (tmp_path / "plain.m3u8").write_bytes(lists["plain.m3u8"])
    with av.open(str(tmp_path / "plain.m3u8")) as box:
        assert next(box.decode(video=0)).width == 84
    (tmp_path / "x.m3u8").write_bytes(lists["http.m3u8"])
    with av.open(str(tmp_path / "x.m3u8"), options={"protocol_whitelist": "file,http,tcp"}):
        assert canary.asked


def test_passwords_are_not_told(serve, site: Site):
    served = serve(sources=(f"{site.url}/",), **QUICK)
    url = f"{site.url}/nothing".replace("://", "://me:hunter22@")
    id = served.open(source={"url": url})
    assert eventually(lambda: served.look(id)["source"]["status"] == "retrying")
    assert "hunter22" not in served.http.get("/v1/streams").text and site.asked
    served.http.post(f"/v1/streams/{id}/snapshots", json={"name": "s"})
    assert b"hunter22" not in served.http.get("/v1/snapshots/s").content
    assert served.http.delete(f"/v1/streams/{id}/source").status_code == 200


def test_the_password_is_sent_to_the_source_alone(serve, site: Site, canary: Site):
    heard: list[str | None] = []
    site.pages["/film"] = lambda to: (heard.append(to.headers["Authorization"]), redirect(f"{canary.url}/film")(to))[1]
    canary.pages["/film"] = lambda to: (heard.append(to.headers["Authorization"]), to.send_error(404))[1]
    served = serve(sources=(f"{site.url}/", f"{canary.url}/"), **QUICK)
    failed(served, f"{site.url}/film".replace("://", "://me:pass@"))
    assert heard == [f"Basic {base64.b64encode(b'me:pass').decode()}", None]


def test_a_key_has_so_many_requests_and_connections(serve):
    """Those of another key are not touched, nor what needs none; what ends makes room."""
    served = serve(keys=(KEY, OTHER), requests_per_key=3)
    id, other = served.open(), served.client(OTHER)
    with served.connect(id, KEY), served.connect(id, KEY) as last:
        with served.http.stream("GET", f"/v1/streams/{id}/events"):
            assert "at most 3" in fault(served.http.get("/v1/streams"), 429, "rate_limit")
            with pytest.raises(InvalidStatus) as refused, served.connect(id, KEY):
                pass
            assert refused.value.response.status_code == 429 and b"rate_limit" in refused.value.response.body
            assert other.get("/v1/streams").status_code == served.http.get("/healthz").status_code == 200
            with served.connect(id, OTHER) as stranger:
                assert closed(stranger) == 4404
        assert eventually(lambda: served.http.get("/v1/streams").status_code == 200)
        last.close()
        assert eventually(lambda: served.look(id)["id"] == id)
    other.close()


# Bodies


def raw_request(served: Served, head: str, body: Iterator[bytes]) -> bytes:
    """Send as much as the server takes; the beginning of its answer."""
    host, port = served.place.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(head.replace("\n", "\r\n").encode())
        try:
            for piece in body:
                client.sendall(piece)
        except OSError:
            pass
        told = b""
        while not told.endswith(b"}}") and (piece := client.recv(65_536)):
            told += piece
        return told


def test_a_body_of_a_gigabyte(serve):
    served = serve(max_body=10**6, max_upload=10**6)
    id = served.open()
    paths = ("/v1/chat/completions", "/v1/streams", f"/v1/streams/{id}/frames", f"/v1/streams/{id}/video")
    for path in paths:
        head = f"POST {path} HTTP/1.1\nHost: 127.0.0.1\nContent-Type: application/json\n"
        told = raw_request(served, f"{head}Content-Length: {2**30}\n\n", iter(()))
        assert b" 413 " in told.split(b"\r\n")[0] and b"too_large_error" in told
        pieces = (b"10000\r\n" + bytes(65_536) + b"\r\n" for _ in range(64))
        told = raw_request(served, f"{head}Transfer-Encoding: chunked\n\n", pieces)
        assert b" 413 " in told.split(b"\r\n")[0] and b"too_large_error" in told
    assert not list(served.settings.uploads.iterdir()) and served.see(id, picture(0))["result"] == "seen"


def test_a_body_that_does_not_come(serve):
    served = serve(body_timeout=0.3)
    id = served.open()
    for path in ("/v1/streams", f"/v1/streams/{id}/frames", f"/v1/streams/{id}/video"):
        head = f"POST {path} HTTP/1.1\nHost: 127.0.0.1\nContent-Type: application/json\nContent-Length: 100\n\n"
        told = raw_request(served, head, iter([b"{"]))
        assert b" 408 " in told.split(b"\r\n")[0] and b"timeout_error" in told
    assert not list(served.settings.uploads.iterdir())


def dribble(served: Served, *pieces: bytes) -> bytes:
    """Send pieces a tenth of a second apart, until the server hangs up; what it answered."""
    host, port = served.place.split(":")
    told = b""
    with socket.create_connection((host, int(port)), timeout=10) as client:
        for piece in pieces:
            client.sendall(piece)
            client.settimeout(0.1)
            try:
                told += client.recv(65_536)
            except TimeoutError:
                continue
        client.settimeout(10)
        while piece := client.recv(65_536):
            told += piece
    return told


def test_a_request_that_does_not_come(serve):
    """A connection that asks nothing, one whose head comes byte by byte, one that begins a second request."""
    served = serve(head_timeout=0.5, heartbeat=0.1)
    head = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    assert dribble(served) == b""
    with pytest.raises(OSError):  # it is closed long before all of these are sent
        dribble(served, head, *[b"X: y\r\n"] * 50)
    assert dribble(served, head + b"\r\n", head).count(b" 200 ") == 1
    assert dribble(served, head, b"\r\n", head, b"\r\n", head).count(b" 200 ") == 2


def test_requests_that_take_long_are_not_hung_up_on(serve):
    served = serve(head_timeout=0.2, heartbeat=0.1)
    id = served.open()
    with served.http.stream("GET", f"/v1/streams/{id}/events") as response, served.connect(id) as socket:
        beats = response.iter_text()
        assert [next(beats) for _ in range(6)] == [": \n\n"] * 6
        socket.send(encoded(picture(0)))
        assert [json.loads(socket.recv(10))["type"] for _ in range(2)] == ["hello", "frame"]


def test_pictures_larger_than_any_cameras_are_not_decoded(served: Served, stream: str):
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    told = served.http.post(f"/v1/streams/{stream}/frames", content=bomb).json()
    assert told["result"] == "refused" and "limit" in told["message"]
    url = f"data:image/png;base64,{base64.b64encode(bomb).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    given = {"model": NAME, "messages": [{"role": "user", "content": parts}]}
    assert "limit" in fault(served.http.post("/v1/chat/completions", json=given), 400, "invalid_request")
    assert served.http.post(f"/v1/streams/{stream}/frames", content=encoded(picture(0))).json()["result"] == "seen"


def test_json_that_is_deep_or_odd(served: Served):
    for body in (
        b"[" * 100_000,
        b'{"fps": NaN}',
        b'{"fps": 1e999}',
        b'{"name": "\\ud800"}',
        b"\xff\xfe",
        b"null",
        b"",
    ):
        response = served.http.post("/v1/streams", content=body, headers={"Content-Type": "application/json"})
        fault(response, response.status_code, "invalid_request")
        assert response.status_code in (400, 422)
