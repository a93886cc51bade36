"""A repository of the Hugging Face Hub that one commit changes, whole or not at all.

The token is the one that `huggingface_hub` finds (its login, or HF_TOKEN). It is neither taken, kept nor shown here.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from c_diffset import __version__

UNTOUCHED = (".gitattributes",)  # files that belong to the Hub itself


def check_token() -> None:
    """PermissionError where nobody is logged in."""
    if get_token() is None:
        raise PermissionError("no token for the Hub: log in with `hf auth login`, or set HF_TOKEN")


class Repository:
    """A repository as the Hub has it; where there is none yet, `sha` is None and `files` empty.

    Args:
        repo: its id, `user/name`.
        kind: "model" or "dataset".

    Raises:
        OSError: the Hub cannot be reached, or refuses.
    """

    def __init__(self, repo: str, kind: str):
        self.repo, self.kind, self.is_new = repo, kind, False
        self.api = HfApi(library_name="c_diffset", library_version=__version__)
        with self._explained("looking it up", "Nothing was created or uploaded."):
            self._look()

    def _look(self) -> None:
        try:
            info = self.api.repo_info(self.repo, repo_type=self.kind)
        except RepositoryNotFoundError:
            self.sha, self.files, self.private = None, [], None
        else:
            self.sha, self.private = info.sha, info.private
            self.files = [sibling.rfilename for sibling in info.siblings or []]

    @property
    def url(self) -> str:
        """Where people see it."""
        return f"{self.api.endpoint}/{'datasets/' * (self.kind == 'dataset')}{self.repo}"

    def read_json(self, name: str) -> dict | None:
        """A JSON object of the repository; None where it has none of that name, or it cannot be understood."""
        if name not in self.files:
            return None
        with tempfile.TemporaryDirectory() as cache, self._explained(f"reading {name}", "Nothing was uploaded."):
            path = self.api.hf_hub_download(
                self.repo, name, repo_type=self.kind, revision=self.sha, cache_dir=cache, force_download=True
            )
            try:
                content = json.loads(Path(path).read_text(encoding="utf-8"))
            except (ValueError, RecursionError):
                return None
        return content if isinstance(content, dict) else None

    @property
    def _unchanged(self) -> str:
        return f"Nothing was committed: {self.url} is {'new, and empty' if self.is_new else 'as it was'}."

    def create(self, private: bool) -> None:
        """Make sure that it exists.

        Raises:
            ValueError: it is to be private, but exists and is public.
            OSError: the Hub cannot be reached, or refuses.
        """
        if private and self.private is False:
            raise ValueError(f"{self.url} exists and is public: make it private there, or leave private out")
        if self.sha is None:
            with self._explained("creating it", "Nothing was uploaded."):
                self.api.create_repo(self.repo, repo_type=self.kind, private=private, exist_ok=True)
                self._look()
            self.is_new = True

    def upload(self, additions: list[CommitOperationAdd]) -> None:
        """Send the contents of large files, which appear in the repository only with `commit`."""
        state = f"{self._unchanged} Repeat the command; what has arrived is not sent again."
        with self._explained("uploading", state):
            self.api.preupload_lfs_files(self.repo, additions, repo_type=self.kind)

    def commit(self, additions: list[CommitOperationAdd], stale: list[str], message: str) -> str:
        """Add files and remove the `stale` ones, at once; returns the address of the commit.

        Raises:
            ValueError: the Hub does not accept the card's metadata.
            OSError: the connection was lost, or the Hub refuses; the message says what is known of the commit.
        """
        operations = [*additions, *(CommitOperationDelete(path_in_repo=name, is_folder=False) for name in stale)]
        try:
            info = self.api.create_commit(
                self.repo, operations, commit_message=message, repo_type=self.kind, parent_commit=self.sha
            )
        except Exception as error:  # the client's HTTP library has errors of its own
            kind = ValueError if type(error) is ValueError else OSError
            raise kind(f"{self.repo}: the commit failed ({_describe(error)}). {self._outcome(error)}") from error
        return info.commit_url

    def _outcome(self, error: Exception) -> str:
        """What became of a commit that failed: refused, or its answer never came."""
        before = self.sha
        if isinstance(error, HfHubHTTPError) and 400 <= error.response.status_code < 500:
            return f"Nothing was committed: the Hub refused it, and {self.url} is as others left it."
        try:
            self._look()
        except Exception:
            return (
                f"The Hub cannot be reached, so it is unknown whether the commit was made; it is made whole or not at "
                f"all. Look at {self.url}, or repeat the command, which commits nothing twice."
            )
        if self.sha == before:
            return f"{self._unchanged} Repeat the command."
        return (
            f"But {self.url} has a new commit, {self.sha}: see there whether it is this one, which is made whole or "
            "not at all. Repeating the command commits nothing twice."
        )

    @contextmanager
    def _explained(self, doing: str, state: str) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            print(f"{self.repo}: interrupted while {doing}. {state}", file=sys.stderr)
            raise
        except Exception as error:  # the client's HTTP library has errors of its own
            raise OSError(f"{self.repo}: {doing} failed ({_describe(error)}). {state}") from error


def _describe(error: BaseException) -> str:
    """The error in one line, and what lies under it."""
    lines = [line.strip() for line in str(error).splitlines() if not line.startswith("For more information")]
    text = f"{type(error).__name__}: {' '.join(filter(None, lines))}"
    cause = error.__cause__
    return text if cause is None or lines[:1] == str(cause).splitlines()[:1] else f"{text} < {_describe(cause)}"
