"""Files of Hugging Face repositories: said before they are downloaded, and one message for whatever goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clt_lightning.core.errors import UserError
from clt_lightning.core.files import disk_errors, disk_reason
from clt_lightning.core.kinds import first_line, megabytes
from clt_lightning.core.say import say

#: Seconds to wait for the hub's word on a file before anything is downloaded
_PATIENCE = 10.0


@dataclass(frozen=True)
class Repository:
    """A repository of the Hugging Face Hub.

    Attributes:
        name: `ORG/NAME`.
        revision: branch, tag or commit; None: the main branch.
        token: as `huggingface_hub` takes it; None: the one of `hf auth login`.
        cache_dir: None: the hub's own.
        local_files_only: download nothing.
        force_download: download also what the cache holds.
    """

    name: str
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    def fetch(self, filename: str) -> Path | None:
        """A file, from the hub's cache, or downloaded into it; the download is announced.

        Returns:
            Where it lies; None where the repository has no such file.

        Raises:
            UserError: no such repository or revision, no leave to read it, no network, or a full disk.
        """
        import huggingface_hub as hub
        from huggingface_hub import constants, errors

        try:
            return Path(
                hub.hf_hub_download(
                    self.name,
                    filename,
                    revision=self.revision,
                    token=self.token,
                    cache_dir=self.cache_dir,
                    force_download=self.force_download,
                    local_files_only=self._look(filename) or self.local_files_only,
                )
            )
        except errors.LocalEntryNotFoundError as error:
            if self._cached(filename) not in (None, ""):  # the hub said once that there is no such file
                return None
            raise UserError(
                f"{self}: {filename} is not in the hub's cache"
                + ("" if self._offline() else f" and could not be downloaded ({first_line(error.__cause__ or error)})")
                + ". Connect once to fetch it, or copy the repository's files into a folder and give that"
            ) from error
        except errors.EntryNotFoundError:
            return None
        except errors.GatedRepoError as error:
            raise UserError(
                f"{self}: the repository wants your consent. Give it on its page, then run `hf auth login`"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise UserError(
                f"{self}: the hub has no such repository, or none that you may read (`hf auth login` for a private one)"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise UserError(f"{self}: the repository has no revision {self.revision!r}") from error
        except errors.HFValidationError as error:
            raise UserError(f"{self.name!r} is no name of a repository: write ORG/NAME") from error
        except (errors.HfHubHTTPError, OSError) as error:
            if disk_reason(error):
                with disk_errors(self.cache_dir or constants.HF_HUB_CACHE):
                    raise
            raise UserError(
                f"{self}: {filename} could not be downloaded ({first_line(error.__cause__ or error)}). Try again, or "
                "copy the repository's files into a folder and give that"
            ) from error

    def announce(self, filename: str) -> Literal["cached", "said", "refused", "unreachable"]:
        """Asks the hub for a file, and says that it will be downloaded where the cache lacks its newest version.

        Returns:
            What was found: `cached` (nothing to download), `said`, `refused` (the hub has no such file, or does not
            give it), or `unreachable`.
        """
        import huggingface_hub as hub
        from huggingface_hub import constants, errors

        try:
            url = hub.hf_hub_url(self.name, filename, revision=self.revision)
            about = hub.get_hf_file_metadata(url, token=self.token, timeout=_PATIENCE)
        except (errors.HfHubHTTPError, errors.EntryNotFoundError, errors.HFValidationError):
            return "refused"
        except Exception:  # of the HTTP library, which changes from version to version
            return "unreachable"
        if self.is_cached(filename, about.commit_hash) and not self.force_download:
            return "cached"
        size = f" ({megabytes(about.size)})" if about.size else ""
        where = self.cache_dir or constants.HF_HUB_CACHE
        say(f"downloading {filename}{size} of {self} from {url.split('/')[2]} into {where} ...")
        return "said"

    def is_cached(self, filename: str, revision: str | None = None) -> bool:
        """Whether the hub's cache on this machine has a file, in some version of the revision."""
        return isinstance(self._cached(filename, revision), str)

    def _look(self, filename: str) -> bool:
        """Announces a download; whether to do without the network, since it is not there and the cache has the file.

        huggingface_hub comes to that as well, after half a minute of retries.
        """
        if self._offline() or (self._is_commit() and self.is_cached(filename)):
            return False
        if self.announce(filename) != "unreachable":
            return False
        known = self._cached(filename) is not None
        if not known:
            say(f"{self}: the hub does not answer; trying again for a while ...")
        return known

    def _cached(self, filename: str, revision: str | None = None) -> Any:
        import huggingface_hub as hub

        wanted = revision or self.revision
        return hub.try_to_load_from_cache(self.name, filename, cache_dir=self.cache_dir, revision=wanted)

    def _is_commit(self) -> bool:
        return self.revision is not None and len(self.revision) == 40 and not self.force_download

    def _offline(self) -> bool:
        from huggingface_hub import constants

        return self.local_files_only or bool(constants.HF_HUB_OFFLINE)


def upload(
    folder: Path,
    name: str,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
    message: str | None = None,
) -> str:
    """Puts a folder's files into a repository of the hub, which is made if it is not there.

    Args:
        folder: its files, and nothing else, go up.
        name: `ORG/NAME`.
        subfolder: where in the repository; None: at its root.
        revision: branch; made if it is not there; None: the main one.
        token: as `huggingface_hub` takes it; None: the one of `hf auth login`.
        private: of a repository that is made; None: as the organisation has it.
        message: of the commit.

    Returns:
        the address of what was uploaded.

    Raises:
        UserError: a name that cannot be, no leave to write, or no network.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    api = hub.HfApi(token=token)
    files = ", ".join(sorted(path.name for path in folder.iterdir()))
    say(f"uploading {files} to {name}{f'/{subfolder}' if subfolder else ''} ...")
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, path_in_repo=subfolder, revision=revision, commit_message=message
        )
    except errors.HFValidationError as error:
        raise UserError(f"{name!r} is no name of a repository: write ORG/NAME") from error
    except (errors.HfHubHTTPError, errors.LocalTokenNotFoundError, OSError) as error:
        raise UserError(
            f"{name}: could not be written ({first_line(error)}). `hf auth login` with a token that may write there, "
            "or check the name"
        ) from error
    return f"{url}/tree/{revision or 'main'}" + (f"/{subfolder}" if subfolder else "")


@contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """While active and `wanted`, huggingface_hub takes what its cache has and does not wait for a network."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
