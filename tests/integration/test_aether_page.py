"""docs/systems/aether.md: its commands, in their order, print what it shows, and the service reads."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import string
import subprocess
import sys
from pathlib import Path

from tests.cli.test_readme import anchors, transcripts
from tests.support.aether import ROOT, Aether
from tests.support.pages import shown_as
from tests.support.workbench import Workbench, rewrap

PAGE = ROOT / "docs" / "systems" / "aether.md"

ROWS = "1500"


class Reader:
    """Somebody who follows the page, and a Kubernetes that starts the service with the key it was given."""

    def __init__(self, aether: Aether) -> None:
        self.aether = aether
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # as the page has it: "$(cat secrets-service.aes)" has no end of a line
        given = {"PATH": path, "SECRET_ENCRYPTION_KEY": aether.new.strip()}
        self.environ = {**aether.bench.environ, **given}
        self.printed: list[str] = []
        self.running = contextlib.ExitStack()
        self.new = False
        self.start()

    def start(self) -> None:
        self.environ["AETHER_PROBE_URL"] = self.running.enter_context(self.aether.serving(new=self.new))

    def kubectl(self, command: str) -> str:
        if "--replicas=0" in command:
            self.running.close()
        elif "--replicas=" in command:
            self.start()
        elif "create secret" in command:
            self.new = True
        else:
            assert "rollout status" in command
        return ""

    def psql(self, statement: str) -> str:
        """What `psql -At` prints."""
        return "".join(f"{'|'.join(map(str, row))}\n" for row in self.aether.bench.sql(statement))

    def types(self, command: str) -> str:
        """What a command prints, all of it."""
        if command.startswith("kubectl "):
            return self.kubectl(command)
        if command.startswith("psql "):
            (statement,) = re.findall(r'-Atc "(.*)"$', command)
            return self.psql(statement)
        if command.startswith("rewrap "):
            words = string.Template(command).substitute(self.environ)
            ran = rewrap(shlex.split(words)[1:], self.aether.bench.folder, self.environ)
            assert ran.code in (0, 2, 4), ran.err + ran.out
            for fernet, old in re.findall(
                r"^run \w+ of aether(-fernet)?: v1 .*keys: v1 sha256:(\w+)", ran.err, re.M
            ):
                self.environ["OLD_FERNET_FINGERPRINT" if fernet else "OLD_FINGERPRINT"] = old
            return ran.err + ran.out
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.aether.bench.folder, env=self.environ,
            capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout
        if "cut -c1-16" in command:
            name = "NEW_FERNET_FINGERPRINT" if "FERNET" in command else "NEW_FINGERPRINT"
            self.environ[name] = done.stdout.strip()
        return done.stderr + done.stdout


def test_page_prints_what_the_program_prints(bench: Workbench) -> None:
    """From pre-flight to retirement and back: every command as it stands there, and every value is read."""
    aether = Aether(bench)
    made = aether.service("make", ROWS)
    reader = Reader(aether)
    ledger: list[str] = []
    with reader.running:
        for command, shown in transcripts(PAGE):
            if command.startswith("rewrap run aether.toml --from v2 --to v1"):
                # the service, started with the new key, has read everything; for the way back it is stopped
                assert aether.service("read", new=True) == made
                reader.running.close()
            printed = reader.types(command)
            assert shown_as(shown, printed), f"the page shows for {command}:\n{shown}\nit prints:\n{printed}"
            if "sha256sum" in command or "secrets-ledger" in command:
                ledger += re.findall(r"\b[0-9a-f]{64}\b", printed)
    before, payloads, envelopes, fernet, after = ledger
    assert before == payloads == envelopes == after != fernet
    assert aether.service("read")["secrets"] == made["secrets"]


def test_links_of_the_page_lead_somewhere() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (PAGE.parent / path).resolve() if path else PAGE
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
