"""A small Hugging Face Hub on the loopback interface: the calls that the real client makes to publish and to load.

Create, look up, list, preupload, LFS (batch, upload, verify), commit, resolve, and validation of cards. Commits are
made whole or not at all. `drop` makes it hang up at a kind of call, as a lost connection does.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_loopbackLOOPBACKloopbackLOOPBACK0"
LARGE = (".safetensors", ".parquet", ".png")  # what the Hub keeps as LFS files


def git_oid(content: bytes) -> str:
    """The name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """One repository: file name to content, and its commits."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    commits: list[str] = field(default_factory=lambda: ["initial commit"])

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((self.commits, sorted(self.files.items()))).encode()).hexdigest()


class HubServer(ThreadingHTTPServer):
    """The server and what it holds.

    Attributes:
        repos: ("models" or "datasets", id) to repository.
        stored: LFS content by SHA-256.
        calls: how often each kind of call was made.
        drop: kinds of calls at which the connection is lost, and after how many that succeed: "lfs", "commit", "info";
            "answer" where the commit is made and only its answer is lost.
        meanwhile: called at every upload of a large file.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.calls: Counter[str] = Counter()
        self.drop: dict[str, int] = {}
        self.meanwhile: Callable[[], object] = lambda: None
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def model(self, repo: str) -> Repo:
        return self.repos["models", repo]


class Lost(Exception):
    """The connection breaks here."""


class Refused(Exception):
    """An answer that is not 200: status, message, the Hub's error code."""


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self.serve("GET")

    def do_HEAD(self) -> None:
        self.serve("HEAD")

    def do_POST(self) -> None:
        self.serve("POST")

    def do_PUT(self) -> None:
        self.serve("PUT")

    def serve(self, method: str) -> None:
        """Find the call that the path means, and answer."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        try:
            for pattern, name in ROUTES:
                match = re.fullmatch(pattern, f"{'GET' if method == 'HEAD' else method} {path}")
                if match:
                    with self.server.lock:
                        self.server.calls[name] += 1
                        if self.server.calls[name] > self.server.drop.get(name, float("inf")):
                            raise Lost
                        getattr(self, name)(body, **match.groupdict())
                    return
            raise Refused(404, f"no such call: {method} {path}", "EntryNotFound")
        except Refused as refused:
            status, message, code = refused.args
            content = json.dumps({"error": message}).encode()
            self.answer(content, status, {"X-Error-Code": code, "X-Error-Message": message})
        except Lost:
            self.close_connection = True

    def answer(self, content: bytes | dict | list, status: int = 200, headers: dict | None = None) -> None:
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {})
        self.send_response(status)
        for key, value in ({"Content-Length": len(content)} | (headers or {})).items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def check_write(self) -> None:
        if not self.authorised():
            raise Refused(401, "Invalid username or password.", "Unauthorized")

    def find(self, kind: str | None, repo: str) -> Repo:
        found = self.server.repos.get((kind or "models", repo))
        if found is None or (found.private and not self.authorised()):
            raise Refused(404, "Repository not found", "RepoNotFound")
        return found

    # ------------------------------------------------------------------------------------------------ the calls

    def create(self, body: bytes) -> None:
        self.check_write()
        request = json.loads(body)
        repo, kind = f"{request['organization']}/{request['name']}", f"{request.get('type') or 'model'}s"
        url = f"{self.server.url}/{'datasets/' * (kind == 'datasets')}{repo}"
        if (kind, repo) in self.server.repos:
            return self.answer({"error": "You already created this repo", "url": url}, 409)
        self.server.repos[kind, repo] = Repo(request.get("visibility") == "private" or bool(request.get("private")))
        self.answer({"url": url})

    def validate(self, body: bytes) -> None:
        """The rules of the Hub that a card of this project could break."""
        request, errors = json.loads(body), []
        block = re.match(r"---\n(.*?)\n---\n", request["content"], re.DOTALL)
        try:
            data = yaml.safe_load(block[1]) if block else None
        except yaml.YAMLError as error:
            data, errors = None, [str(error)]
        data = data if isinstance(data, dict) else {}
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", str(data.get("license"))):
            errors.append('"license" must be one of the known licences')
        for key in ("base_model", "datasets"):
            for name in [data[key]] if isinstance(data.get(key), str) else data.get(key) or []:
                if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
                    errors.append(f'"{key}" with value "{name}" is not valid')
        for model in data.get("model-index") or []:
            for result in model["results"]:
                if (
                    not {"task", "dataset", "metrics"} <= result.keys()
                    or not {"name", "type"} <= result["dataset"].keys()
                ):
                    errors.append('"model-index" is not valid')
                if not all(isinstance(metric["value"], int | float) for metric in result["metrics"]):
                    errors.append('"model-index" has a metric that is no number')
        messages = [{"message": message} for message in errors]
        self.answer({"errors": messages, "warnings": []}, 400 if errors else 200)

    def info(self, body: bytes, kind: str, repo: str) -> None:
        found = self.find(kind, repo)
        siblings = [{"rfilename": name} for name in sorted(found.files)]
        self.answer({"id": repo, "sha": found.sha, "private": found.private, "tags": [], "siblings": siblings})

    def tree(self, body: bytes, kind: str, repo: str, folder: str = "") -> None:
        """Files below a folder, and the folders that lead to them."""
        files = self.find(kind, repo).files
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        names = [name for name in sorted(files) if name.startswith(prefix)]
        recursive = "recursive=true" in self.path.lower()
        folders = {prefix + name[len(prefix) :].split("/")[0] for name in names if "/" in name[len(prefix) :]}
        entries = [{"type": "directory", "path": path, "oid": git_oid(path.encode()), "size": 0} for path in folders]
        shown = names if recursive else [name for name in names if "/" not in name[len(prefix) :]]
        self.answer(entries + [self.entry(files, name) for name in shown])

    def paths(self, body: bytes, kind: str, repo: str) -> None:
        files = self.find(kind, repo).files
        wanted = parse_qs(body.decode())["paths"]
        entries = [self.entry(files, name) for name in wanted if name in files]
        folders = {name for name in wanted if any(file.startswith(f"{name}/") for file in files)}
        self.answer(entries + [{"type": "directory", "path": name, "oid": git_oid(b""), "size": 0} for name in folders])

    @staticmethod
    def entry(files: dict[str, bytes], name: str) -> dict:
        content = files[name]
        entry = {"type": "file", "path": name, "size": len(content), "oid": git_oid(content)}
        if name.endswith(LARGE):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
        return entry

    def preupload(self, body: bytes, kind: str, repo: str) -> None:
        self.check_write()
        files, answers = self.find(kind, repo).files, []
        for wanted in json.loads(body)["files"]:
            name, oid = wanted["path"], None
            large = name.endswith(LARGE)
            if name in files:
                oid = hashlib.sha256(files[name]).hexdigest() if large else git_oid(files[name])
            mode = "lfs" if large else "regular"
            answers.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": answers})

    def batch(self, body: bytes, repo: str) -> None:
        self.check_write()
        objects = []
        for wanted in json.loads(body)["objects"]:
            actions = {
                "upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"},
                "verify": {"href": f"{self.server.url}/lfs/verify"},
            }
            objects.append(wanted | ({} if wanted["oid"] in self.server.stored else {"actions": actions}))
        self.answer({"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def lfs(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "the content does not fit its checksum", "BadRequest")
        self.server.stored[oid] = body
        self.server.meanwhile()
        self.answer({})

    def verify(self, body: bytes) -> None:
        wanted = json.loads(body)
        if len(self.server.stored.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refused(404, "no such object", "EntryNotFound")
        self.answer({})

    def commit(self, body: bytes, kind: str, repo: str) -> None:
        """All operations, or none."""
        self.check_write()
        found = self.find(kind, repo)
        rows = [json.loads(line) for line in body.splitlines()]
        header, files = rows[0]["value"], dict(found.files)
        if header.get("parentCommit") not in (None, found.sha):
            raise Refused(412, "A commit has happened since.", "PreconditionFailed")
        for row in rows[1:]:
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                if value["oid"] not in self.server.stored:
                    raise Refused(400, f"LFS pointer to a missing object {value['oid']}", "BadRequest")
                files[value["path"]] = self.server.stored[value["oid"]]
            else:
                del files[value["path"]]
        found.files = files
        found.commits.append(header["summary"])
        if "answer" in self.server.drop:
            raise Lost
        self.answer({"commitUrl": f"{self.server.url}/{repo}/commit/{found.sha}", "commitOid": found.sha})

    def resolve(self, body: bytes, repo: str, name: str, kind: str | None = None) -> None:
        found = self.find(kind, repo)
        if name not in found.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        content, status = found.files[name], 200
        etag = self.entry({name: content}, name)
        etag = etag.get("lfs", etag)["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": found.sha, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted:
            start, end = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        self.answer(content, status, headers)


REPO = r"/api/(?P<kind>models|datasets)/(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"GET {REPO}(?:/revision/[\w.-]+)?", "info"),
    (rf"GET {REPO}/tree/[\w.-]+(?P<folder>(?:/.*)?)", "tree"),
    (rf"POST {REPO}/paths-info/[\w.-]+", "paths"),
    (rf"POST {REPO}/preupload/main", "preupload"),
    (rf"POST {REPO}/commit/main", "commit"),
    (r"POST /(?:datasets/)?(?P<repo>[\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", "batch"),
    (r"POST /lfs/verify", "verify"),
    (r"PUT /lfs/(?P<oid>[0-9a-f]{64})", "lfs"),
    (r"GET /(?:(?P<kind>datasets)/)?(?P<repo>[\w.-]+/[\w.-]+)/resolve/[\w.-]+/(?P<name>.+)", "resolve"),
]
