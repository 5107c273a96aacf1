"""From `--model` to files: folders, tarballs, object storage and http, and what a person gets wrong."""

import io
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from transforms.errors import UserError
from transforms.model.source import ModelFiles, identify_model, locate_model


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A folder with the files of a module; what they hold does not matter here."""
    folder = tmp_path / "module"
    for name, content in (
        ("saved_model.pb", "graph"),
        ("tfhub_module.pb", "\x08\x03"),
        ("variables/variables.index", "index"),
        ("variables/variables.data-00000-of-00001", "weights"),
        ("assets/labels.tsv", "0\tcat\n"),
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def digest_of(folder: Path) -> str:
    return identify_model(ModelFiles("any", str(folder)))


def pack(folder: Path, path: Path, inside: str = ".") -> Path:
    with tarfile.open(path, "w:gz" if path.suffix != ".tar" else "w") as archive:
        archive.add(folder, inside)
    return path


def cached(caches: Path) -> list[str]:
    return sorted(os.listdir(caches)) if caches.exists() else []


@dataclass
class Server:
    """Answers paths with bytes or a status; lists `bucket/key` paths as S3 does."""

    answers: dict[str, bytes | int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def listing(self, bucket: str, prefix: str, delimiter: str) -> bytes:
        names = [path[len(bucket) + 2 :] for path in self.answers if path.startswith(f"/{bucket}/")]
        below = [name for name in names if name.startswith(prefix)]
        direct = [name for name in below if not delimiter or delimiter not in name[len(prefix) :]]
        folders = {prefix + name[len(prefix) :].split("/")[0] + "/" for name in set(below) - set(direct)}
        entries = "".join(
            f"<Contents><Key>{name}</Key><Size>{self.size(bucket, name)}</Size>"
            "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
            for name in sorted(direct)
        )
        entries += "".join(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in folders)
        count = len(direct) + len(folders)
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><Prefix>{prefix}</Prefix><KeyCount>{count}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        ).encode()

    def size(self, bucket: str, name: str) -> int:
        content = self.answers[f"/{bucket}/{name}"]
        return len(content) if isinstance(content, bytes) else 0

    def answer(self, target: str) -> bytes | int:
        parts = urlsplit(target)
        query = parse_qs(parts.query)
        if "list-type" in query:
            prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))
            return self.listing(parts.path.strip("/"), prefix, delimiter)
        return self.answers.get(parts.path, 404)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append(self.path)
            answer = state.answer(self.path)
            content = answer if isinstance(answer, bytes) else b""
            first, last = 0, len(content) - 1
            if "Range" in self.headers:
                first, last = (int(n) for n in self.headers["Range"].removeprefix("bytes=").split("-"))
            self.send_response(answer if isinstance(answer, int) else 206 if "Range" in self.headers else 200)
            self.send_header("Content-Length", str(len(content[first : last + 1])))
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.end_headers()
            self.wfile.write(content[first : last + 1])

        def do_HEAD(self) -> None:
            answer = state.answer(self.path)
            self.send_response(answer if isinstance(answer, int) else 200)
            self.send_header("Content-Length", str(len(answer) if isinstance(answer, bytes) else 0))
            self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{listener.server_port}"
    yield state
    listener.shutdown()
    thread.join()
    listener.server_close()


@pytest.fixture
def bucket(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
    """Puts the files of a folder into the server, which is now where s3:// leads."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def put(prefix: str, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                server.answers[f"/{prefix}/{path.relative_to(folder)}"] = path.read_bytes()

    return put


def test_a_folder_is_used_where_it_lies(module: Path, caches: Path) -> None:
    assert locate_model(str(module)) == ModelFiles(str(module), str(module))
    assert locate_model(f"{module}/").folder == str(module)
    assert locate_model(module.as_uri()).folder == str(module)
    assert cached(caches) == []


def test_a_relative_folder_can_be_found_from_elsewhere(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    handle = locate_model("module").handle
    monkeypatch.chdir("/")
    assert locate_model(handle).folder == str(module)


def test_small_is_the_embedded_model_even_beside_a_folder_of_that_name(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.move(module, tmp_path / "small")
    assert locate_model("small").handle == "small"
    assert locate_model("small").folder != str(tmp_path / "small")
    assert locate_model("./small").folder == str(tmp_path / "small")


def test_a_checkpoint_is_a_model_too(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt.index").write_text("index")
    (tmp_path / "model.ckpt.data-00000-of-00001").write_text("weights")
    files = locate_model(str(tmp_path))
    before = identify_model(files)
    (tmp_path / "graph.pbtxt").write_text("what else training left")
    assert identify_model(files) == before
    (tmp_path / "model.ckpt.data-00000-of-00001").write_text("Weights")
    assert identify_model(files) != before


def test_identity_is_that_of_contents_and_names_not_of_place_or_time(module: Path, tmp_path: Path) -> None:
    before = digest_of(module)
    copy = Path(shutil.copytree(module, tmp_path / "copy"))
    os.utime(copy / "saved_model.pb", (0, 0))
    (copy / "tfhub_module.pb").unlink()
    (copy / "variables" / ".hidden").write_text("a cache of the file system")
    (copy / "README").write_text("not of the model")
    assert digest_of(copy) == before


@pytest.mark.parametrize(
    "name", ["saved_model.pb", "variables/variables.data-00000-of-00001", "assets/labels.tsv"]
)
def test_identity_changes_with_every_file_of_the_model(module: Path, name: str) -> None:
    before = digest_of(module)
    path = module / name
    path.write_bytes(path.read_bytes().swapcase())
    assert digest_of(module) != before


@pytest.mark.parametrize("inside", [".", "pnasnet_large"])
@pytest.mark.parametrize("name", ["model.tar.gz", "model.tgz", "model.tar"])
def test_a_tarball_is_unpacked_once_for_what_it_holds(
    module: Path, tmp_path: Path, caches: Path, name: str, inside: str
) -> None:
    archive = pack(module, tmp_path / name, inside)
    files = locate_model(str(archive))
    assert files.handle == str(archive)
    assert identify_model(files) == digest_of(module)
    assert locate_model(archive.as_uri()).folder == files.folder
    assert cached(caches) == [digest_of(module)]


def test_a_worker_with_a_full_cache_needs_no_tarball(module: Path, tmp_path: Path) -> None:
    archive = pack(module, tmp_path / "model.tar.gz")
    files = locate_model(str(archive))
    archive.unlink()
    assert locate_model(str(archive), digest_of(module)) == files


def test_a_changed_tarball_of_the_same_name_is_another_model(module: Path, tmp_path: Path) -> None:
    archive = pack(module, tmp_path / "model.tar.gz")
    before = locate_model(str(archive))
    (module / "saved_model.pb").write_text("GRAPH")
    pack(module, archive)
    assert identify_model(locate_model(str(archive))) != identify_model(before)


def test_threads_that_unpack_at_once_agree(module: Path, tmp_path: Path, caches: Path) -> None:
    archive = pack(module, tmp_path / "model.tar.gz")
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(locate_model(str(archive)).folder)) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [str(caches / digest_of(module))] * 6
    assert cached(caches) == [digest_of(module)]


@pytest.mark.parametrize("member", ["../evil", "/evil", "variables/../../../evil"])
def test_a_tarball_that_leads_out_of_its_folder_is_refused(tmp_path: Path, caches: Path, member: str) -> None:
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("saved_model.pb", member):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
    if member == "/evil":  # made relative, as tar itself does
        assert (Path(locate_model(str(archive)).folder) / "saved_model.pb").exists()
    else:
        with pytest.raises(UserError, match=f"{archive}: cannot be unpacked"):
            locate_model(str(archive))
        assert cached(caches) == []
    assert not Path("/evil").exists()
    assert not list(tmp_path.rglob("../evil"))


def test_a_link_out_of_the_tarball_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("saved_model.pb")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(UserError, match="cannot be unpacked"):
        locate_model(str(archive))


@pytest.mark.parametrize("damage", [lambda data: b"<html>not found</html>", lambda data: data[:-40]])
def test_a_damaged_tarball_leaves_nothing_behind(
    module: Path, tmp_path: Path, caches: Path, damage: Callable[[bytes], bytes]
) -> None:
    archive = pack(module, tmp_path / "model.tar.gz")
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(UserError, match=str(archive)):
        locate_model(str(archive))
    assert cached(caches) == []


def test_what_is_no_model_is_named(module: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for handle, reason in (
        ("", "--model is empty"),
        (f"{tmp_path}/none", "none: no such folder"),
        (f"{tmp_path}/none.tar.gz", "none.tar.gz: .*No such file"),
        (f"{module}/saved_model.pb", "saved_model.pb: is a file; pass the folder"),
        (f"{tmp_path}/photos", "photos: holds neither saved_model.pb nor a checkpoint"),
        (str(pack(tmp_path / "photos", tmp_path / "p.tar")), "p.tar: holds neither saved_model.pb"),
        ("file://host/model", "file://host/model: file:// must name a local path"),
        ("ftp://host/model", "ftp://host.*cannot read ftp://"),
    ):
        with pytest.raises(UserError, match=reason):
            locate_model(handle)


def test_a_cache_that_cannot_be_made_is_told(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(module, tmp_path / "model.tar.gz")
    monkeypatch.setenv("XDG_CACHE_HOME", str(archive))
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        locate_model(str(archive))


def test_a_remote_folder_is_copied_but_not_what_lies_beside_the_model(
    module: Path, caches: Path, server: Server, bucket: Callable[[str, Path], None]
) -> None:
    bucket("models/pnasnet", module)
    server.answers["/models/pnasnet/photos/1.jpg"] = b"\xff\xd8"
    files = locate_model("s3://models/pnasnet")
    assert files.folder == str(caches / digest_of(module))
    assert identify_model(files) == digest_of(module)
    assert not [path for path in server.requests if "1.jpg" in path]
    server.answers.clear()
    assert locate_model("s3://models/pnasnet", digest_of(module)).folder == files.folder


def test_the_latest_of_remote_checkpoints_is_copied(
    tmp_path: Path, server: Server, bucket: Callable[[str, Path], None]
) -> None:
    for step in (1, 2):
        (tmp_path / f"model.ckpt-{step}.index").write_text(f"index {step}")
        (tmp_path / f"model.ckpt-{step}.data-00000-of-00001").write_text(f"weights {step}")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-2"\n')
    bucket("checkpoints", tmp_path)
    assert identify_model(locate_model("s3://checkpoints/")) == digest_of(tmp_path)
    assert not [path for path in server.requests if "ckpt-1.data" in path]


def test_a_remote_tarball_is_unpacked(
    module: Path, tmp_path: Path, server: Server, bucket: Callable[[str, Path], None]
) -> None:
    server.answers["/archives/m.tar.gz"] = pack(module, tmp_path / "m.tar.gz").read_bytes()
    assert identify_model(locate_model("s3://archives/m.tar.gz")) == digest_of(module)


def test_a_remote_folder_without_a_model_is_named(
    server: Server, bucket: Callable[[str, Path], None]
) -> None:
    server.answers["/photos/1.jpg"] = b"\xff\xd8"
    with pytest.raises(UserError, match="s3://photos/none: holds neither"):
        locate_model("s3://photos/none")


def test_a_hub_handle_is_downloaded_once(module: Path, tmp_path: Path, server: Server) -> None:
    server.answers["/google/imagenet/pnasnet/1"] = pack(module, tmp_path / "m.tar.gz").read_bytes()
    handle = f"{server.url}/google/imagenet/pnasnet/1"
    files = locate_model(handle)
    assert files.handle == handle
    assert identify_model(files) == digest_of(module)
    assert locate_model(handle) == files
    assert server.requests == ["/google/imagenet/pnasnet/1?tf-hub-format=compressed"]


@pytest.mark.parametrize(("answer", "reason"), [(403, "403"), (404, "404"), (b"<html>", "valid module")])
def test_a_hub_that_refuses_is_told_with_what_to_do(server: Server, answer: bytes | int, reason: str) -> None:
    server.answers["/model/1"] = answer
    with pytest.raises(UserError, match=rf"{server.url}/model/1: .*{reason}.*pass its folder"):
        locate_model(f"{server.url}/model/1")


def test_a_hub_that_cannot_be_reached_is_told_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1/model: .*pass its folder"):
        locate_model("http://127.0.0.1:1/model")
