"""The files of deploy/ and docs/serve.md: no flag, setting or metric in them is made up."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
import yaml
from starlette.testclient import TestClient

from sie_core.cli.program import program
from sie_core.local import LocalClient
from sie_core.server.app import create_app
from sie_core.server.settings import ModelSettings, ServerSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def serve_options() -> set[str]:
    """The options of `sie serve`, as people write them."""
    command: Any = typer.main.get_command(program)
    parameters = command.commands["serve"].params
    return {name for it in parameters for name in it.opts if name.startswith("--")}


def options_in(text: str) -> set[str]:
    """The long options that stand in a text."""
    return {f"--{name}" for name in re.findall(r"(?<![\w-])--([a-z][a-z-]+)", text)}


@pytest.fixture(scope="module")
def exposed(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all samples that a server exposes that has served each kind of call."""
    folder = tmp_path_factory.mktemp("exposed") / "tiny"  # another test may have the model loaded
    shutil.copytree(tiny_bert, folder)
    # Preloaded, it may be called before the load has been timed.
    models = (ModelSettings(name="tiny", source=str(folder), preload=False),)
    settings = ServerSettings(models=models, wait_for_load_seconds=30)
    body = {"query": {"text": "a"}, "items": [{"text": "b"}]}
    with TestClient(create_app(settings, LocalClient(mode="exact"))) as client:
        assert client.post("/v1/score/tiny", json=body).status_code == 200
        page = client.get("/metrics").text
    return set(re.findall(r"^([a-z_]+)(?:\{| )", page, re.MULTILINE))


def expressions(node: Any) -> Iterator[str]:
    """Every query of a dashboard."""
    if isinstance(node, dict):
        yield from (node[name] for name in ("expr", "definition") if name in node)
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


NAME = re.compile(r"\b(?:sie|process|python)_[a-z_]+")


def test_every_metric_of_the_dashboard_is_exposed(exposed: set[str]) -> None:
    """A panel without data looks like a server without load."""
    dashboard = json.loads((DEPLOY / "grafana" / "sie.json").read_text())
    names = {name for query in expressions(dashboard) for name in NAME.findall(query)}
    assert len(names) > 20
    assert names - exposed == set()


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    """Each has its own id and place, within 24 columns."""
    panels = json.loads((DEPLOY / "grafana" / "sie.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) == 23


def test_every_metric_of_the_documentation_is_exposed_and_the_other_way_round(
    exposed: set[str],
) -> None:
    """docs/serve.md lists them all; a histogram stands for its parts."""
    text = (ROOT / "docs" / "serve.md").read_text()
    documented = set(re.findall(r"`(sie_[a-z_]+)`", text))
    ours = {
        re.sub("_(bucket|sum|count)$", "", name)
        for name in exposed
        if name.startswith("sie_") and not name.endswith("_created")
    }
    assert documented == ours


@pytest.mark.parametrize("name", ["docs/serve.md", "docs/deploy.md", "deploy/systemd/sie.service"])
def test_every_flag_that_is_named_exists(name: str) -> None:
    """Those of docker, systemd and others stand in lines of theirs."""
    lines = [
        line
        for line in (ROOT / name).read_text().splitlines()
        if "sie serve" in line or line.startswith("| `--")
    ]
    assert options_in("\n".join(lines)) - serve_options() == set()


def test_every_flag_is_documented() -> None:
    """In the table of docs/serve.md."""
    text = (ROOT / "docs" / "serve.md").read_text()
    assert (
        serve_options() - options_in(text) - {"--no-" + it[2:] for it in serve_options()} == set()
    )


def test_every_setting_is_documented() -> None:
    """By its name in the TOML file."""
    text = (ROOT / "docs" / "serve.md").read_text()
    assert [name for name in ServerSettings.__struct_fields__ if f"`{name}`" not in text] == []


def test_the_images_command_is_one_of_the_program() -> None:
    """And compose and Kubernetes add such as it takes."""
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    entry = json.loads(next(re.finditer(r"^ENTRYPOINT (.*)$", text, re.MULTILINE))[1])
    assert entry[:2] == ["sie", "serve"]
    compose = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())
    pods = [it for it in kubernetes() if it["kind"] == "Deployment"]
    arguments = [
        *entry,
        *compose["services"]["sie"]["command"],
        *pods[0]["spec"]["template"]["spec"]["containers"][0]["args"],
    ]
    assert options_in(" ".join(arguments)) <= serve_options()


def test_the_image_copies_what_is_there() -> None:
    """And .dockerignore lets it through."""
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    ignore = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--)(.*)$", text, re.MULTILINE):
        for source in shlex.split(line)[:-1]:
            assert f"!{source.removeprefix('./')}" in ignore


def kubernetes() -> list[dict[str, Any]]:
    """The objects of the Kubernetes example."""
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / "sie.yaml").read_text()))


@pytest.mark.parametrize("where", ["systemd", "kubernetes"])
def test_the_example_settings_are_settings(where: str) -> None:
    """A server that is started with them would take them."""
    text = (DEPLOY / "systemd" / "sie.toml").read_text()
    if where == "kubernetes":
        (maps,) = [it for it in kubernetes() if it["kind"] == "ConfigMap"]
        text = maps["data"]["sie.toml"]
    settings = msgspec.convert(tomllib.loads(text), ServerSettings)
    assert settings.models
    assert settings.api_key_file


def test_the_kubernetes_objects_fit_each_other() -> None:
    """Names, labels and ports that are used are defined; draining fits into the end's time."""
    by_kind = {it["kind"]: it for it in kubernetes()}
    pod = by_kind["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert by_kind[kind]["spec"]["selector"]["matchLabels"] == labels
    assert by_kind["Service"]["spec"]["selector"] == labels
    (container,) = pod["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    assert {it["targetPort"] for it in by_kind["Service"]["spec"]["ports"]} <= ports
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    target = by_kind["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
    assert target == by_kind["Deployment"]["metadata"]["name"]
    settings = msgspec.convert(
        tomllib.loads(by_kind["ConfigMap"]["data"]["sie.toml"]), ServerSettings
    )
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    end = pod["spec"]["terminationGracePeriodSeconds"]
    assert sleep + settings.drain_seconds < end
