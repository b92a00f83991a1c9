"""The files of ``deploy/`` hold together: with each other, with our flags, with what reads them.

Nothing is built or started here: no Docker, no cluster. ``systemd-analyze`` reads the unit where
there is one.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from rosellm import cli
from rosellm.roseinfer.server import flags

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile*"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNIT = DEPLOY / "systemd" / "rosellm.service"
PROBES = {"/livez", "/readyz"}


def serve_options(words: Sequence[str]) -> flags.Options:
    """What our own parser makes of a command line; a model may be on another machine."""
    assert words[0] == "serve", words
    there = [str(ROOT / "rosellm/data/rosellm-demo") if "/served" in w else w for w in words]
    return flags.options(vars(cli.parser().parse_args(there)))


# -- Dockerfiles -----------------------------------------------------------------------------


def instructions(file: Path) -> list[tuple[str, str]]:
    """Instructions and their arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", file.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line)]


def last(file: Path, name: str) -> str:
    return [rest for word, rest in instructions(file) if word == name][-1]


def is_in_context(path: Path) -> bool:
    """Whether .dockerignore lets it through; the last line that matches decides."""
    taken = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#") and fnmatch(str(path), pattern):
            taken = line.startswith("!")
    return taken


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
class TestDockerfile:
    def test_what_is_copied_is_there(self, file: Path) -> None:
        copied = [rest.split()[:-1] for word, rest in instructions(file) if word == "COPY"]
        sources = [Path(source) for sources in copied for source in sources]
        assert len(sources) >= 3
        for source in sources:
            assert (ROOT / source).exists(), source
            assert is_in_context(source), f".dockerignore keeps {source} out"

    def test_all_that_builds_the_wheel_is_copied(self, file: Path) -> None:
        """What pyproject.toml names has to be in the first stage."""
        copied = " ".join(rest for word, rest in instructions(file) if word == "COPY").split()
        assert {"pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "rosellm"} <= {*copied}

    def test_wheels_come_from_the_first_stage(self, file: Path) -> None:
        names = [word for word, _ in instructions(file)]
        assert names.count("FROM") == 2
        final = instructions(file)[len(names) - names[::-1].index("FROM") - 1 :]
        runs = [rest for word, rest in final if word == "RUN"]
        assert any("--no-index" in run and "from=build" in run for run in runs)
        assert not any("g++" in rest or "apt-get" in rest for _, rest in final)

    def test_the_user_is_not_root(self, file: Path) -> None:
        user, _, group = last(file, "USER").partition(":")
        assert user.isdigit()
        assert group.isdigit()
        assert int(user) > 0 < int(group)
        names = [word for word, _ in instructions(file)]
        assert "USER" in names[names.index("FROM", 1) :]

    def test_the_command_is_ours(self, file: Path) -> None:
        assert json.loads(last(file, "ENTRYPOINT")) == ["rosellm"]
        options = serve_options(json.loads(last(file, "CMD")))
        assert options.server.port == int(last(file, "EXPOSE"))
        assert not options.server.insecure

    def test_health_is_asked_without_a_shell(self, file: Path) -> None:
        program, *words = json.loads(last(file, "HEALTHCHECK").partition("CMD ")[2])
        assert program == "python"
        compile(words[-1], "HEALTHCHECK", "exec")
        [path] = set(re.findall(r"'(/\w+)'", words[-1]))
        assert path in PROBES
        assert f"'127.0.0.1', {last(file, 'EXPOSE')}" in words[-1]

    def test_only_the_cache_is_written(self, file: Path) -> None:
        volumes = json.loads(last(file, "VOLUME"))
        set_to = dict(pair.split("=") for pair in last(file, "ENV").split())
        for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME"):
            assert any(set_to[name].startswith(volume) for volume in volumes)


@pytest.mark.parametrize("answer", [200, 503, None])
def test_the_health_check_works(answer: int | None, tmp_path: Path) -> None:
    """Against a program that answers so, or where nobody listens."""
    import http.server
    import threading

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path in PROBES
            self.send_response(answer or 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
        if answer is None:
            server.server_close()
        _, *words = json.loads(last(DOCKERFILES[0], "HEALTHCHECK").partition("CMD ")[2])
        words = [word.replace("8000", str(port)) for word in words]
        done = subprocess.run([sys.executable, *words], capture_output=True, check=False)
        server.shutdown()
    assert (done.returncode == 0) == (answer == 200)


# -- compose ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


SERVICE_KEYS = {
    "build", "image", "command", "environment", "ports", "volumes", "read_only", "tmpfs",
    "cap_drop", "security_opt", "pids_limit", "ulimits", "stop_grace_period", "restart",
    "secrets", "depends_on",
}  # fmt: skip


def test_compose_has_only_known_keys(compose: dict[str, Any]) -> None:
    """Of the Compose specification, those that are used."""
    assert set(compose) == {"name", "services", "secrets", "volumes"}
    for name, service in compose["services"].items():
        assert set(service) <= SERVICE_KEYS, name
        assert "image" in service
        assert set(service.get("depends_on", ())) <= set(compose["services"])
        assert set(service.get("secrets", ())) <= set(compose["secrets"])


def test_composed_files_are_there(compose: dict[str, Any]) -> None:
    build = compose["services"]["rosellm"]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    for source in _bound(compose):
        assert (DEPLOY / source).exists(), source


def _bound(compose: dict[str, Any]) -> Iterator[str]:
    """Sources of mounts that are paths beside compose.yaml."""
    for service in compose["services"].values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0] if isinstance(mount, str) else mount["source"]
            if source.startswith("."):
                yield source
            elif "$" not in source:
                assert source in compose["volumes"]


def test_composed_services_are_closed(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:"), f"{name} is open to other machines"
    ours = compose["services"]["rosellm"]
    assert ours["read_only"] is True
    assert ours["environment"]["ROSELLM_API_KEY"].startswith("${ROSELLM_API_KEY:?")
    serve_options(ours["command"])


def test_prometheus_finds_the_server(compose: dict[str, Any]) -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    [job] = config["scrape_configs"]
    [target] = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert serve_options(compose["services"][host]["command"]).server.port == int(port)
    secret = Path(job["authorization"]["credentials_file"])
    assert secret.parent == Path("/run/secrets")
    assert secret.name in compose["services"]["prometheus"]["secrets"]


def test_grafana_finds_prometheus_and_the_dashboard(compose: dict[str, Any]) -> None:
    folder = DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["url"].split("//")[1].split(":")[0] in compose["services"]
    [provider] = yaml.safe_load((folder / "dashboards" / "rosellm.yaml").read_text())["providers"]
    mounts = [m.split(":")[1] for m in compose["services"]["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/rosellm.json" in mounts


# -- systemd ---------------------------------------------------------------------------------


def unit() -> dict[str, list[str]]:
    """Settings of all sections, by name."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_starts_our_server() -> None:
    settings = unit()
    program, *words = shlex.split(settings["ExecStart"][0])
    assert Path(program).name == "rosellm"
    options = serve_options(words)
    assert options.server.host == "127.0.0.1"
    assert settings["Type"] == ["notify"]
    assert settings["NotifyAccess"] == ["main"]
    assert "WatchdogSec" in settings


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """Apart from the program, which is not installed here."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/rosellm/bin/rosellm", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


# -- Kubernetes ------------------------------------------------------------------------------


def manifests() -> list[dict[str, Any]]:
    return [each for file in MANIFESTS for each in yaml.safe_load_all(file.read_text())]


def of_kind(kind: str) -> dict[str, Any]:
    [found] = [each for each in manifests() if each["kind"] == kind]
    return found


KINDS = {
    "Deployment": "apps/v1",
    "Service": "v1",
    "PersistentVolumeClaim": "v1",
    "PodDisruptionBudget": "policy/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
}
CONTAINER_KEYS = {
    "name", "image", "args", "env", "ports", "resources", "startupProbe", "livenessProbe",
    "readinessProbe", "lifecycle", "securityContext", "volumeMounts",
}  # fmt: skip
PROBE_KEYS = {"httpGet", "periodSeconds", "failureThreshold", "timeoutSeconds"}


def pod() -> dict[str, Any]:
    found: dict[str, Any] = of_kind("Deployment")["spec"]["template"]["spec"]
    return found


def container() -> dict[str, Any]:
    [found] = pod()["containers"]
    assert isinstance(found, dict)
    return found


def test_every_manifest_is_one_of_kubernetes() -> None:
    assert {each["kind"]: each["apiVersion"] for each in manifests()} == KINDS
    for each in manifests():
        assert set(each) == {"apiVersion", "kind", "metadata", "spec"}
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", each["metadata"]["name"])


def test_manifests_select_the_pods() -> None:
    deployment = of_kind("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert of_kind("Service")["spec"]["selector"] == labels
    assert of_kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert of_kind("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels


def test_the_container_starts_our_server() -> None:
    assert set(container()) <= CONTAINER_KEYS
    options = serve_options(container()["args"])
    [port] = container()["ports"]
    assert options.server.port == port["containerPort"]
    assert of_kind("Service")["spec"]["ports"][0]["targetPort"] == port["name"]
    assert [each["name"] for each in container()["env"]] == ["ROSELLM_API_KEY"]


def test_three_probes() -> None:
    paths = {}
    for kind in ("startup", "liveness", "readiness"):
        probe = container()[f"{kind}Probe"]
        assert set(probe) <= PROBE_KEYS
        assert probe["httpGet"]["port"] == "http"
        paths[kind] = probe["httpGet"]["path"]
    assert paths == {"startup": "/readyz", "liveness": "/livez", "readiness": "/readyz"}
    startup = container()["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600


def test_there_is_time_to_end() -> None:
    program, _, code = container()["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "python"
    waited = int(re.fullmatch(r"import time; time\.sleep\((\d+)\)", code)[1])  # type: ignore[index]
    assert pod()["terminationGracePeriodSeconds"] >= waited + drain_timeout() + 5


def drain_timeout() -> float:
    """Seconds for which requests in flight may go on when the server is told to stop."""
    return serve_options(container()["args"]).server.drain_timeout


def test_the_others_leave_time_to_end_too() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert int(compose["services"]["rosellm"]["stop_grace_period"][:-1]) >= drain_timeout() + 5
    assert int(unit()["TimeoutStopSec"][0][:-1]) >= drain_timeout() + 5


def test_the_pod_is_closed() -> None:
    assert pod()["automountServiceAccountToken"] is False
    outer, inner = pod()["securityContext"], container()["securityContext"]
    assert outer["runAsNonRoot"] is True
    assert f"{outer['runAsUser']}:{outer['runAsGroup']}" == last(DOCKERFILES[0], "USER")
    assert outer["seccompProfile"] == {"type": "RuntimeDefault"}
    assert inner["allowPrivilegeEscalation"] is False
    assert inner["readOnlyRootFilesystem"] is True
    assert inner["capabilities"] == {"drop": ["ALL"]}
    resources = container()["resources"]
    assert resources["limits"]["memory"] == resources["requests"]["memory"]


def test_mounts_are_volumes() -> None:
    mounted = {each["name"]: each["mountPath"] for each in container()["volumeMounts"]}
    assert set(mounted) == {each["name"] for each in pod()["volumes"]}
    assert mounted["cache"] in json.loads(last(DOCKERFILES[0], "VOLUME"))
    claim = of_kind("PersistentVolumeClaim")["metadata"]["name"]
    [models] = [each for each in pod()["volumes"] if each["name"] == "models"]
    assert models["persistentVolumeClaim"]["claimName"] == claim
