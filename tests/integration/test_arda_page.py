"""docs/systems/arda.md: its commands, in their order, print what it shows."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from string import Template

from tests.cli.test_readme import anchors, transcripts
from tests.support.arda import ROOT, Arda
from tests.support.aws import AwsServer
from tests.support.pages import shown_as
from tests.support.workbench import Workbench

PAGE = ROOT / "docs" / "systems" / "arda.md"


class Reader:
    """Somebody who follows the page. What it says in words between two commands is done before the second."""

    def __init__(self, arda: Arda) -> None:
        self.arda = arda
        arda.bench.environ |= {"OLD": arda.old, "OLDER": arda.older}
        # moto takes any role for one that may be assumed
        arda.bench.environ["ARDA_FALLBACK_ROLE"] = "arn:aws:iam::123456789012:role/Fallback"
        arda.bench.environ["KEPT"] = f"rewrap-keep-{arda.older[:8]}"

    def before(self, command: str) -> None:
        """What the page says in words."""
        labels = self.arda.labels
        if "rewrap-candidate" in labels:
            self.arda.bench.environ["NEW"] = labels["rewrap-candidate"]
        if command.startswith("rewrap plan"):
            # the test tenant's token is written, and read
            assert self.arda.application("mop", "1")["mopped"] == 1
        if "arda-mounted.toml" in command:
            self.mount()

    def mount(self) -> None:
        """What External Secrets would have in both mounts by now."""
        for name, label in (("current", "AWSCURRENT"), ("previous", "AWSPREVIOUS")):
            version = self.arda.labels[label]
            mount = self.arda.bench.folder / "mounts" / f"email-encryption-key-{name}"
            mount.mkdir(parents=True)
            for file, text in (
                ("key", json.loads(self.arda.key(version))["key"]),
                ("version-id", version),
            ):
                (mount / file).write_text(text)
                (mount / file).chmod(0o440)
        self.arda.bench.environ["ARDA_MOUNTS"] = str(self.arda.bench.folder / "mounts")

    def types(self, command: str) -> str:
        """What a command prints, all of it."""
        environ = self.arda.bench.environ
        words = [Template(word).substitute(environ) for word in shlex.split(command)]
        if words[0] == "cat":
            return (self.arda.bench.folder / words[1]).read_text()
        assert words[0] == "rewrap"
        done = self.arda.bench.rewrap(*words[1:])
        assert done.code in (0, 2, 3), done.err
        return done.err + done.out


def test_page_prints_what_the_program_prints(bench: Workbench, aws: AwsServer) -> None:
    """From the gate to retirement and back again: every command as it stands there, and no token lost."""
    arda = Arda(bench, aws)
    arda.application("make", "400")
    reader = Reader(arda)
    ran = 0
    for command, shown in transcripts(PAGE):
        reader.before(command)
        printed = reader.types(command).replace(bench.environ["PARTITION"], "dev")
        assert shown_as(shown, printed), f"the page shows for {command}:\n{shown}\nit prints:\n{printed}"
        if "keys mint" in command and ran < 5:
            digest = hashlib.sha256(json.loads(arda.key(arda.labels["rewrap-candidate"]))["key"].encode())
            assert digest.hexdigest()[:16] in printed or "candidate already" in printed
        ran += 1
    assert ran >= 15
    assert arda.application("audit") == {str(at): f"token of {at}" for at in range(1, 400)} | {"400": None}


def test_links_of_the_page_lead_somewhere() -> None:
    """Within it and beyond it."""
    for link in re.findall(r"\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (PAGE.parent / path).resolve() if path else PAGE
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
