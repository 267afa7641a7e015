import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.chats import running
from tests.messages import store
from tests.services import KEY, ROOT, Service, free_port, wait_for

README = (ROOT / "README.md").read_text()


def normal(answer: str) -> list[str]:
    """Return the lines with every time of day made the same."""
    return re.sub(r"20\d\d-\d\d-\d\dT[0-9:.]+\+00:00", "TIME", answer).strip().split("\n")


def matches(shown: list[str], given: list[str]) -> bool:
    """Compare, where a line `…` stands for any lines."""
    if "…" not in shown:
        return shown == given
    gap = shown.index("…")
    rest = shown[gap + 1 :]
    return given[:gap] == shown[:gap] and given[len(given) - len(rest) :] == rest


def test_the_tour_answers_as_shown(folder: Path) -> None:
    app, flags = f"127.0.0.1:{free_port()}", ("--with-persistence", "--demo-model")
    with running("chat", folder, *flags, wait=False, API_BASE_URL=f"http://{app}") as system:
        tour = README.replace("localhost:8100", f"127.0.0.1:{system.port}").replace("localhost:8000", app)
        calls = re.findall(r"```sh\n([^`]*curl[^`]*)```\n```\w+\n(.*?)```", tour, re.DOTALL)
        assert len(calls) == 10
        wait_for(lambda: "Ready." in system.text(), 120, "the start")
        for call, shown in calls:
            script = ["bash", "-c", f"KEY=$(cat secrets/api_key.txt)\n{call}"]
            done = subprocess.run(script, cwd=folder, capture_output=True, text=True, timeout=60)
            assert matches(normal(shown), normal(done.stdout)), f"{call}\n{done.stdout}{done.stderr}"


def test_messages_move_as_shown(
    make_service: Callable[..., Service], make_database: Callable[[], str], folder: Path
) -> None:
    """A second run leaves alone what the first one has stored."""
    old, new = (make_service("persistence", DATABASE_URL=make_database(), API_KEY=KEY) for _ in range(2))
    for number in range(3):
        store(old, content=f"{number} \u00e9\U0001f600 " + "long " * 100_000)
    script = re.search(r"```sh\n(curl -s --fail \$FROM.*?)```", README, re.DOTALL)
    assert script
    env = {"PATH": "/usr/bin:/bin", "KEY": KEY, "FROM": old.url, "TO": new.url}
    command = ["bash", "-c", script[1]]
    for answers in ('{"stored":2,"already_there":0}', '{"stored":0,"already_there":2}'):
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
        assert answers in done.stdout, done.stdout + done.stderr
    lines = {"Accept": "application/x-ndjson"}
    assert new.get("/messages/", headers=lines).content == old.get("/messages/", headers=lines).content != b""


def test_the_settings_are_those_that_are_read() -> None:
    paths = [*ROOT.glob("*/settings.py"), ROOT / "persistence/web/env.py"]
    sources = "".join(path.read_text() for path in paths)
    read = set(re.findall(r'"([A-Z][A-Z_]+)"', sources))
    section = README.split("## Settings")[1].split("##")[0]
    shown = {
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert shown == read


def test_each_test_that_is_named_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", README))
    sources = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert named
    assert named <= set(re.findall(r"^def (test_\w+)", sources, re.MULTILINE))


def test_the_ways_through_the_code_are_as_long_as_it_says() -> None:
    ways = re.findall(r"^\| .*? \| (`\w+/.*?) \| (\d+) \|$", README, re.MULTILINE)
    assert len(ways) == 3
    for files, said in ways:
        lines = [line for name in re.findall("`(.*?)`", files) for line in (ROOT / name).read_text().splitlines()]
        counted = sum(not re.match(r"\s*(#|--|$)", line) for line in lines)
        assert abs(counted - int(said)) <= int(said) / 20, files
