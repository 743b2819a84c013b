"""Files for other people's machines: none of them is here, so each is held against the schema, the programs and the pages it relies on."""

from __future__ import annotations

import copy
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.spec import PretrainSpec, load_spec
from tests.pages import fences

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CLUSTER = ROOT / "cluster"
AUTOSCALER = sorted(CLUSTER.glob("ray_cluster*.yaml"))
COMMANDS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")


def code_lines(text: str) -> list[str]:
    """Lines of the sh blocks of a page, comments off."""
    lines = [line.split(" #")[0].strip() for fence in fences(text) if fence.language == "sh" for line in fence.lines]
    return [line for line in lines if line and not line.startswith("#")]


def ray_start_options() -> set[str]:
    """Flags of `ray start` as installed."""
    from ray.scripts.scripts import start

    return {option for parameter in start.params for option in parameter.opts}


def flags_of(text: str) -> list[str]:
    """Flags behind `ray start`, or behind `node` of slurm.sh, in shell text; continued lines belong to it."""
    calls = re.findall(r"\b(?:ray start|node \"\$\w+\")([^\n;|&]*)", text.replace("\\\n", " "))
    return [word.split("=")[0] for call in calls for word in call.split() if word.startswith("--")]


# ------------------------------------------------------------------------------------------------------------ ray up: ssh and clouds


def autoscaler_problem(config: dict[str, Any]) -> str | None:
    """What Ray would refuse `ray up` with."""
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    try:
        jsonschema.validate({k: v for k, v in config.items() if k != "min_workers" or config["provider"]["type"] != "local"}, schema)
        validate_config(prepare_config(copy.deepcopy(config)))
    except (jsonschema.ValidationError, ValueError) as error:
        return str(error).splitlines()[0]
    return None


@pytest.mark.parametrize("file", AUTOSCALER, ids=lambda file: file.name)
def test_ray_up_would_take_it(file: Path) -> None:
    """`min_workers` at the top is for machines reached by ssh only; Ray moves it before it looks at its schema."""
    config = yaml.safe_load(file.read_text())
    assert autoscaler_problem(config) is None
    assert "Additional properties" in str(autoscaler_problem({**config, "min_wokers": 2}))
    assert "is not of type 'integer'" in str(autoscaler_problem({**config, "max_workers": "two"}))


def test_machines_reached_by_ssh_all_take_part() -> None:
    config = yaml.safe_load((CLUSTER / "ray_cluster.yaml").read_text())
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])


def test_the_cloud_keeps_its_head_and_rents_its_gpus() -> None:
    config = yaml.safe_load((CLUSTER / "ray_cluster_aws.yaml").read_text())
    types = config["available_node_types"]
    assert "InstanceMarketOptions" not in types[config["head_node_type"]]["node_config"]
    assert types["gpu"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert 1 <= types["gpu"]["min_workers"] <= types["gpu"]["max_workers"] <= config["max_workers"]


@pytest.mark.parametrize("file", AUTOSCALER, ids=lambda file: file.name)
def test_commands_of_a_cluster_file_are_shell_and_ray(file: Path) -> None:
    config = yaml.safe_load(file.read_text())
    commands = [command for key in (*COMMANDS, *STARTS) for command in config.get(key, [])]
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    for key in STARTS:
        flags = flags_of("\n".join(config[key]))
        assert len(flags) >= 2
        assert set(flags) <= ray_start_options()
        assert any(". .venv/bin/activate" in command and "RAY_AUTH_MODE=token" in command for command in config[key])
    for line in re.findall(r"ray job submit ([\w./-]+)", file.read_text()):
        load_spec(ROOT / line, [])


# ------------------------------------------------------------------------------------------------------------------------ Kubernetes


def fields(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """JSON schema of an object with these fields and no others."""
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": [*required], "additionalProperties": False}


def many(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


TEXT, COUNT, YES_OR_NO = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}  # Kubernetes takes quantities and flags as strings only
POD = fields(
    {
        "spec": fields(
            {
                "containers": many(
                    fields(
                        {
                            "name": TEXT,
                            "image": TEXT,
                            "resources": fields({"requests": TEXTS, "limits": TEXTS}),
                            "volumeMounts": many(fields({"name": TEXT, "mountPath": TEXT})),
                        },
                        {
                            "ports": many(fields({"name": TEXT, "containerPort": COUNT})),
                            "env": many(fields({"name": TEXT, "value": TEXT})),
                            "envFrom": many(fields({"secretRef": fields({"name": TEXT}, {"optional": YES_OR_NO})})),
                        },
                    )
                ),
                "volumes": many(
                    fields(
                        {"name": TEXT},
                        {"persistentVolumeClaim": fields({"claimName": TEXT}), "emptyDir": fields({}, {"medium": TEXT, "sizeLimit": TEXT})},
                    )
                ),
                "securityContext": fields({"runAsNonRoot": {"const": True}, "runAsUser": COUNT, "fsGroup": COUNT}),
            },
            {"terminationGracePeriodSeconds": COUNT, "tolerations": many(fields({"key": TEXT, "operator": TEXT, "effect": TEXT}))},
        )
    }
)
RAY_JOB = fields(  # the documented fields of ray.io/v1 that the file uses: https://ray-project.github.io/kuberay/reference/api/
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": fields({"name": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,45}[a-z0-9])?$"}}),
        "spec": fields(
            {
                "entrypoint": TEXT,
                "rayClusterSpec": fields(
                    {
                        "rayVersion": TEXT,
                        "headGroupSpec": fields({"rayStartParams": TEXTS, "template": POD}),
                        "workerGroupSpecs": many(
                            fields(
                                {
                                    "groupName": TEXT,
                                    "replicas": COUNT,
                                    "minReplicas": COUNT,
                                    "maxReplicas": COUNT,
                                    "rayStartParams": TEXTS,
                                    "template": POD,
                                }
                            )
                        ),
                    },
                    {"enableInTreeAutoscaling": YES_OR_NO, "authOptions": fields({"mode": {"enum": ["token", "disabled"]}})},
                ),
            },
            {
                "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
                "backoffLimit": COUNT,
                "shutdownAfterJobFinishes": YES_OR_NO,
                "ttlSecondsAfterFinished": COUNT,
            },
        ),
    }
)


@pytest.fixture
def ray_job() -> dict[str, Any]:
    """A copy without shared parts, so that a test may change one of them."""
    return json.loads(json.dumps(yaml.safe_load((CLUSTER / "kuberay.yaml").read_text())))


def test_kuberay_would_take_it(ray_job: dict[str, Any]) -> None:
    jsonschema.validate(ray_job, RAY_JOB)
    ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(ray_job, RAY_JOB)


def test_a_quantity_that_is_no_string_is_seen(ray_job: dict[str, Any]) -> None:
    ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    with pytest.raises(jsonschema.ValidationError, match="0 is not of type 'string'"):
        jsonschema.validate(ray_job, RAY_JOB)


def test_the_kubernetes_job_runs_the_file_of_the_project(ray_job: dict[str, Any]) -> None:
    """The entrypoint is a job of ours, its paths lie on the volume, the head does no training and every worker has GPUs."""
    file, *assignments = shlex.split(ray_job["spec"]["entrypoint"])
    spec = load_spec(ROOT / file, assignments)
    assert isinstance(spec, PretrainSpec)
    cluster = ray_job["spec"]["rayClusterSpec"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert 1 <= workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    options = ray_start_options()
    for group in (head, workers):
        assert {f"--{name}" for name in group["rayStartParams"]} <= options
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
        (shared,) = [volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        assert all(Path(path).is_relative_to(mounts[shared]) for path in (spec.shards, spec.out))
        assert mounts["shm"] == "/dev/shm"
        assert container["image"] == head["template"]["spec"]["containers"][0]["image"]
        assert pod["securityContext"]["runAsUser"] == int(re.search(r"--uid (\d+)", DOCKERFILE).group(1))  # type: ignore[union-attr]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) >= 1


# ------------------------------------------------------------------------------------------------------------------------------ Slurm


def test_slurm_script_is_clean() -> None:
    program = shutil.which("shellcheck")
    subprocess.run(["bash", "-n", CLUSTER / "slurm.sh"], check=True)
    assert os.access(CLUSTER / "slurm.sh", os.X_OK)
    flags = flags_of((CLUSTER / "slurm.sh").read_text())
    assert {"--head", "--address", "--block"} <= set(flags)
    assert set(flags) <= ray_start_options()
    if program is None:
        pytest.skip("shellcheck is not installed; the script is at least bash")
    done = subprocess.run([program, CLUSTER / "slurm.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# ----------------------------------------------------------------------------------------------------------------------- docs/cluster.md


def test_the_page_for_users_can_be_followed() -> None:
    """Its jobs are valid, its flags those of `ray start`, its files exist, and it has every variable that the code reads."""
    page = (ROOT / "docs/cluster.md").read_text()
    jobs = [line for line in code_lines(page) if line.startswith("ray job submit")]
    assert len(jobs) >= 4
    for line in jobs:
        words = [word for word in shlex.split(line)[3:] if word not in ("--", "--dry-run")]
        load_spec(ROOT / words[0], words[1:])
    starts = [line for line in code_lines(page) if "ray start" in line]
    assert len(starts) >= 3
    assert set(flags_of("\n".join(starts))) <= ray_start_options()
    files = set(re.findall(r"\b(?:cluster|tests)/[\w/]+\.\w+", page))
    assert {f"cluster/{path.name}" for path in (*AUTOSCALER, CLUSTER / "slurm.sh", CLUSTER / "kuberay.yaml")} <= files
    assert [name for name in sorted(files) if not (ROOT / name).exists()] == []
    read = {name for path in CLUSTER.glob("*.py") for name in re.findall(r"\"((?:GLOO|WANDB|POLYMER|OMP)_[A-Z_]+)\"", path.read_text())}
    assert len(read) >= 4
    assert [name for name in sorted(read) if f"`{name}`" not in page] == []


# -------------------------------------------------------------------------------------------------------------------------- container

DOCKERFILE = (ROOT / "Dockerfile").read_text()
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def stages() -> dict[str, list[tuple[str, str]]]:
    """(instruction, rest) of every stage by name, those of the stage that it starts from first."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in filter(None, (line.strip() for line in text.splitlines())):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.split()
            found[name] = list(found.get(base, []))
        else:
            found[name].append((word, " ".join(rest.split())))
    return found


def install_steps(stage: str) -> list[str]:
    """RUN lines behind the COPY of the project that use it."""
    steps = stages()[stage]
    return [rest for word, rest in steps[steps.index(("COPY", "--chown=polymer:polymer . .")) :] if word == "RUN" and "make" in rest]


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_the_image_installs_as_the_page_says(stage: str) -> None:
    steps = install_steps(stage)
    assert len(steps) == 1
    assert set(steps) <= set(code_lines(README))
    assert install_steps("cpu") != install_steps("cuda")


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_the_image_is_a_head_in_the_project_root_of_a_plain_user(stage: str) -> None:
    steps = stages()[stage]
    words = [word for word, _ in steps]
    assert words.index("USER") < words.index("WORKDIR") < words.index("COPY") < words.index("CMD")
    assert words.count("USER") == 1
    assert dict(steps)["USER"] not in ("root", "0")
    shell, flag, command = json.loads(dict(steps)["CMD"])
    assert (shell, flag) == ("sh", "-c")
    subprocess.run(["sh", "-n", "-c", command], check=True)
    assert {"--head", "--block"} <= set(flags_of(command)) <= ray_start_options()
    assert f"PATH={dict(steps)['WORKDIR']}/.venv/bin:$PATH" in DOCKERFILE


def kept_out(name: str) -> bool:
    """Whether .dockerignore leaves a file out: its path or a folder above it matches a pattern, from the root unless `**/`."""
    parts = Path(name).parts
    paths = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    tails = ["/".join(parts[a:b]) for a in range(len(parts)) for b in range(a + 1, len(parts) + 1)]
    return any(
        fnmatch.fnmatch(path, pattern.removeprefix("**/").lstrip("/"))
        for pattern in IGNORED
        for path in (tails if pattern.startswith("**/") else paths)
    )


def tracked() -> list[str]:
    """Files of the project."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout.splitlines()


def test_the_image_holds_the_project_and_nothing_else() -> None:
    assert [name for name in tracked() if kept_out(name)] == ["Dockerfile"]
    for name in (".git/HEAD", ".venv/bin/python", "runs/x/metrics.jsonl", "shards/a.tar", "cluster/__pycache__/x.pyc", "a.egg-info/x"):
        assert kept_out(name), name


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", ["cpu"])
def test_the_install_steps_make_a_working_environment(stage: str, tmp_path: Path) -> None:
    """The image's own steps on the files that it would hold: a fresh virtual environment, then a job's plan and a head's command line."""
    project = tmp_path / "polymer-foundation"
    for name in tracked():
        if not kept_out(name):
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project / name)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "VIRTUAL_ENV", "PYTHONPATH", "MAKE"))}
    paths = [path for path in kept["PATH"].split(":") if path != str(Path(sys.executable).parent)]
    environment = {**kept, "PATH": ":".join(paths), "HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}
    for step in install_steps(stage):
        done = subprocess.run(["sh", "-c", step], cwd=project, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    inside = {**environment, "PATH": f"{project / '.venv/bin'}:{environment['PATH']}"}
    done = subprocess.run(
        ["cluster/smoke.yaml", "--dry-run"], cwd=project, env=inside, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "dry run: nothing was started or written" in done.stderr
    done = subprocess.run(["ray", "--version"], cwd=project, env=inside, capture_output=True, text=True, check=True)
    assert f"ray=={done.stdout.split()[-1]}" in (ROOT / "constraints.txt").read_text().splitlines()
