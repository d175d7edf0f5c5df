"""A pytest plugin for llama.cpp's server tests with other models than theirs.

Models are not downloaded beforehand, and what a model wrote is not compared: patterns that a text
should match hold for the tests' own models. Writes each test's outcome and the line that failed to
the file that LLAMA_SERVER_OUTCOMES names.
"""

import json
import os

outcomes: dict[str, list[str]] = {}


def pytest_collection() -> None:
    import utils

    def no_download(url: str, output_file_path: str | None = None) -> str:
        raise RuntimeError(f"needs a download: {url}")

    utils.ServerPreset.load_all = staticmethod(lambda: None)
    utils.match_regex = lambda regex, text: isinstance(text, str)
    utils.download_file = no_download


def pytest_runtest_logreport(report) -> None:
    if report.when == "call" or report.outcome != "passed":
        reason = ""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = (crash.message if crash else str(report.longrepr)).strip()
            launch = [line for _, text in report.sections for line in text.splitlines()
                      if line.startswith(("launch: ", "error: "))]
            reason = (launch or reason.splitlines() or [""])[0]
        outcomes[report.nodeid] = [report.outcome, reason]


def pytest_sessionfinish() -> None:
    path = os.environ["LLAMA_SERVER_OUTCOMES"]
    # Tests that did not run now keep what they had.
    before = json.load(open(path)) if os.path.exists(path) else {}
    with open(path, "w") as file:
        json.dump(before | outcomes, file, indent=1)
