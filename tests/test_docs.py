"""What the documents tell people to type works: `console` blocks after <!-- run -->, SQL, links, flags."""

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import duckdb
import pytest

from jobs.arguments import Parser
from jobs.embed import add_flags
from transforms import errors
from transforms.errors import ImageFailure
from transforms.faiss_index import RECIPES

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str, opening: str) -> list[str]:
    return re.findall(rf"^{re.escape(opening)}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the README's session was typed."""
    folder = tmp_path_factory.mktemp("session")
    program = Path(sys.executable).with_name("pnasvec")
    commands = [
        line.removeprefix("$ ")
        for block in blocks((ROOT / "README.md").read_text(), "<!-- run -->\n```console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    assert len(commands) >= 2
    for command in commands:
        words = [str(program) if word == "pnasvec" else word for word in shlex.split(command)]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("document", ["README.md", "docs/embed.md"])
def test_sql_in_the_documents_runs_on_what_the_session_made(session: Path, document: str) -> None:
    (session / "runs").mkdir(exist_ok=True)
    run = session / "runs" / "photos"
    for query in ";".join(blocks((ROOT / document).read_text(), "```sql")).split(";"):
        if query.strip():
            placed = query.replace("'RUN/", f"'{run}/").replace("'runs/photos/", f"'{run}/")
            assert duckdb.sql(placed).fetchall()


def test_the_example_program_runs(session: Path) -> None:
    command = [sys.executable, str(ROOT / "docs/examples/first_rows.py"), "runs/photos"]
    done = subprocess.run(command, cwd=session, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "640 numbers" in done.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_every_flag_of_embed_is_documented_and_every_documented_one_exists() -> None:
    actions = add_flags(Parser(prog="x"))._actions
    flags = {flag for action in actions for flag in action.option_strings if flag.startswith("--")} - {
        "--help"
    }
    text = (ROOT / "docs" / "embed.md").read_text()
    documented = set(re.findall(r"--[a-z][a-z0-9-]+[a-z0-9]", text))
    assert flags <= documented
    assert documented - flags <= {"--runner", "--json", "--direct"}


@pytest.mark.parametrize("command", ["index", "search"])
def test_every_flag_of_index_and_search_is_documented(command: str) -> None:
    parser = import_module(f"jobs.{command}").add_flags(Parser(prog="x"))
    flags = {flag for action in parser._actions for flag in action.option_strings} - {"-h", "--help"}
    text = (ROOT / "docs" / "index-and-search.md").read_text()
    assert {flag for flag in flags if f"`{flag}`" in text} == flags


def test_every_recipe_is_documented_and_every_documented_one_exists() -> None:
    text = (ROOT / "docs" / "index-and-search.md").read_text()
    rows = re.findall(r"^\| `([a-z][a-z0-9-]*)` \|", text, re.MULTILINE)
    assert rows == [row.name for row in RECIPES]


def test_every_named_failure_is_documented() -> None:
    names = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, ImageFailure) and not kind.__subclasses__()
    }
    text = (ROOT / "docs" / "embed.md").read_text()
    assert names == set(re.findall(r"`([A-Z][A-Za-z]+)`", text)) & names
