"""A PostgreSQL server of one's own, from the binaries that are installed here."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PASSWORD = "let me in"
USER = "twotower"
_PROGRAMS = ("initdb", "pg_ctl", "postgres", "psql")


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs: where `initdb` of PATH leads to, or Debian's; None when there is none."""
    on_path = shutil.which("initdb")
    places = [
        *glob.glob("/usr/lib/postgresql/*/bin"),
        *([os.path.dirname(os.path.realpath(on_path))] if on_path else []),
    ]
    whole = [place for place in places if all(os.path.exists(os.path.join(place, name)) for name in _PROGRAMS)]
    return Path(whole[-1]) if whole else None


class Server:
    """A server that listens on this machine only, and asks for a password."""

    def __init__(self, folder: Path, owner: str | None) -> None:
        self._folder = folder
        self._owner = owner
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        password = folder / "password"
        password.write_text(PASSWORD)
        self._command("initdb", "--username", USER, "--auth", "scram-sha-256", "--pwfile", str(password), "--no-sync")
        self.start()

    def start(self) -> None:
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._command("pg_ctl", "start", "--wait", "--log", str(self._folder / "log"), "--options", options)

    def crash(self) -> None:
        """Every process of it ends at once, connections and transactions with them; it recovers when it starts."""
        self._command("pg_ctl", "stop", "--wait", "--mode", "immediate")

    def sql(self, statement: str) -> None:
        """Executes a statement as the server's own user."""
        folder = binaries()
        assert folder is not None
        subprocess.run(
            [folder / "psql", "--host", "127.0.0.1", "--port", str(self.port), "--username", USER,
             "--command", statement, "postgres"],
            check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PGPASSWORD": PASSWORD},
        )  # fmt: skip

    def settings(self, database: str) -> dict[str, object]:
        """The configuration's section `metadata`; the database is made by ML Metadata."""
        return {"kind": "postgresql", "host": "127.0.0.1", "port": self.port, "database": database, "user": USER,
                "password_env": "POSTGRESQL_PASSWORD"}  # fmt: skip

    def _command(self, name: str, *arguments: str) -> None:
        folder = binaries()
        assert folder is not None
        subprocess.run(
            [folder / name, "--pgdata", str(self._folder / "data"), *arguments],
            check=True, stdout=subprocess.DEVNULL, cwd=self._folder,
            # It refuses to run as root.
            **({"user": self._owner, "group": pwd.getpwnam(self._owner).pw_gid, "extra_groups": []}
               if self._owner else {}),
        )  # fmt: skip


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """A server with its data in a temporary folder."""
    owner = None
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    if os.getuid() == 0:
        known = {user.pw_name for user in pwd.getpwall()}
        owner = "postgres" if "postgres" in known else "nobody"
        shutil.chown(folder, owner)
    try:
        server = Server(folder, owner)
        try:
            yield server
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                server.crash()
    finally:
        shutil.rmtree(folder)
