"""`make audit`: known vulnerabilities of what is installed here, and secrets in what is committed.

Vulnerabilities are asked for at OSV (https://osv.dev), by pip-audit. Where OSV can't be reached nothing is known, and
that is said, never "passed"; with GUARDTRACE_AUDIT=required it fails. Secrets are looked for by detect-secrets, which
asks nobody; what was looked at and is none stands in .secrets.baseline, as hashes. ``--accept`` adds what is found.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

OSV = "https://api.osv.dev/v1/query"
PROBE_SECONDS, AUDIT_SECONDS = 8, 30
ACCEPTED: dict[str, str] = {}
"""Vulnerabilities that don't concern us: by their id, why."""
BASELINE = ".secrets.baseline"
NOT_SCANNED = re.compile(
    r"\.(png|safetensors)$|/tokenizer\.json$|package-lock\.json$|^tests/data/|/nano/bank/|\.secrets\.baseline$"
)
"""Pictures, weights, lists of hashes, and texts that the embedded auditor is trained and tested on."""
PLUGINS = (
    "ArtifactoryDetector AWSKeyDetector AzureStorageKeyDetector BasicAuthDetector GitHubTokenDetector "
    "GitLabTokenDetector JwtTokenDetector NpmDetector OpenAIDetector PrivateKeyDetector PypiTokenDetector "
    "SendGridDetector SlackDetector SquareOAuthDetector StripeDetector TelegramBotTokenDetector TwilioKeyDetector"
)
"""None that goes by entropy, since hashes stand everywhere here, or by words like ``api_key``: tests make up keys."""
SETTINGS: dict[str, Any] = {
    "plugins_used": [{"name": name} for name in PLUGINS.split()],
    "filters_used": [{"path": f"detect_secrets.filters.{name}"} for name in (
        "allowlist.is_line_allowlisted",
        "heuristic.is_indirect_reference",
        "heuristic.is_likely_id_string",
        "heuristic.is_not_alphanumeric_string",
        "heuristic.is_prefixed_with_dollar_sign",
        "heuristic.is_sequential_string",
        "heuristic.is_templated_secret",
    )],
}  # fmt: skip


def vulnerabilities(osv: str, required: bool) -> int:
    """How many are known; 1 as well where nothing could be learnt and it is required."""
    problem = _unreachable(osv)
    content: dict[str, Any] = {}
    if problem is None:
        command = [
            sys.executable,
            "-m",
            "pip_audit",
            "--vulnerability-service",
            "osv",
            "--osv-url",
            osv,
            "--format",
            "json",
        ]
        command += ["--skip-editable", "--progress-spinner", "off", "--desc", "off"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=AUDIT_SECONDS)
            content = json.loads(done.stdout)
        except subprocess.TimeoutExpired:
            problem = f"OSV took longer than {AUDIT_SECONDS} s"
        except ValueError:
            problem = "pip-audit failed: " + (done.stderr.strip().splitlines() or ["without a word"])[-1]
    if problem is not None:
        print(f"vulnerabilities: NOT CHECKED. {problem}. What is installed may or may not have known ones.")
        return int(required)
    found = 0
    for package in content["dependencies"]:
        if "skip_reason" in package:
            print(f"vulnerabilities: {package['name']} not checked: {package['skip_reason']}")
        for each in package.get("vulns", ()):
            if ACCEPTED.keys().isdisjoint({each["id"], *each["aliases"]}):
                found += 1
                versions = ", ".join(each["fix_versions"]) or "no version"
                print(f"vulnerabilities: {package['name']} {package['version']}: {each['id']}, mended in {versions}")
    print(f"vulnerabilities: {found} known in {len(content['dependencies'])} packages")
    return found


def secrets(root: Path, accept: bool) -> int:
    """How many are in tracked files that the baseline doesn't know."""
    from detect_secrets import SecretsCollection
    from detect_secrets.core import baseline
    from detect_secrets.settings import transient_settings

    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    files = [name for name in listed.split("\0") if name and not NOT_SCANNED.search(name) and (root / name).is_file()]
    with transient_settings(SETTINGS):
        found = SecretsCollection(root=str(root))
        found.scan_files(*files)
        if accept:
            (root / BASELINE).write_text(json.dumps(baseline.format_for_output(found), indent=2) + "\n", "utf-8")
    known = {
        (name, each["type"], each["hashed_secret"])
        for name, entries in json.loads((root / BASELINE).read_text("utf-8"))["results"].items()
        for each in entries
    }
    new = [(name, each) for name, each in found if (name, each.type, each.secret_hash) not in known]
    for name, each in new:
        print(f"secrets: {name}:{each.line_number}: {each.type}")
    print(f"secrets: {len(new)} new in {len(files)} files")
    if new:
        print(
            "secrets: take it out and revoke it; one that is none: `python .ci/audit.py --accept`, and look at the diff"
        )
    return len(new)


def _unreachable(osv: str) -> str | None:
    """Why a database that is asked for a package that everyone has doesn't answer; None where it does."""
    asked = json.dumps({"package": {"name": "pip", "ecosystem": "PyPI"}, "version": "26.0"}).encode()
    request = urllib.request.Request(osv, asked, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as reply:
            json.load(reply)
    except (OSError, ValueError) as error:
        return f"{osv} can't be reached ({error})"
    return None


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    of_secrets = secrets(Path.cwd(), "--accept" in sys.argv)
    of_packages = vulnerabilities(os.environ.get("OSV_URL", OSV), os.environ.get("GUARDTRACE_AUDIT") == "required")
    sys.exit(bool(of_secrets or of_packages))
