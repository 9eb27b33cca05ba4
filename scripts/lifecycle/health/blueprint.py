"""The part of Render's Blueprint (render.yaml) that this project uses, as strict frozen objects.

Render can check a file only online and behind a login (``render blueprints validate``), and its JSON schema ignores
unknown keys. This model refuses them. Source of the rules: Render's Blueprint reference; decision 0015.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from scripts.utils.errors import Misconfigured, pydantic_message
from scripts.utils.strict_yaml import StrictLoader

Region = Literal["oregon", "ohio", "virginia", "frankfurt", "singapore"]
_SOME_DAY = datetime(2026, 1, 1, tzinfo=UTC)
_NATIVE = ("elixir", "go", "node", "python", "ruby", "rust")
_WRONG = {
    "env": "is the old name of runtime; an environment's name is a variable",
    "command": "is no field: startCommand",
    "timeout": "is no field: the script keeps to its budget itself",
    "preDeployCommand": "is not there for cron services",
    "maxShutdownDelaySeconds": "is not there for cron services",
    "autoDeploy": "is the old form of autoDeployTrigger",
}


def _five_fields(schedule: str) -> str:
    if len(schedule.split()) != 5:  # noqa: PLR2004 - cron's
        raise ValueError("a schedule has five fields, in UTC")
    try:
        CronSim(schedule, _SOME_DAY)
    except CronSimError as error:
        raise ValueError(f"{schedule} is no schedule: {error}") from None
    return schedule


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", alias_generator=to_camel)


class Value(_Model):
    """A variable whose value stands in the file."""

    key: str
    value: str


class Generated(_Model):
    """A variable whose value Render generates once."""

    key: str
    generate_value: Literal[True]


class Secret(_Model):
    """A variable that Render asks a person for when the Blueprint is first applied."""

    key: str
    sync: Literal[False]


class Source(_Model):
    """Another service of the file, and the property or variable that is taken from it."""

    type: Literal["cron", "keyvalue"]
    name: str
    property: Literal["connectionString", "host", "port", "hostport"] | None = None
    env_var_key: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Source:
        if (self.property is None) == (self.env_var_key is None):
            raise ValueError("names either a property or an envVarKey")
        return self


class Reference(_Model):
    """A variable whose value comes from another service."""

    key: str
    from_service: Source


class FromGroup(_Model):
    """Stands for all variables of a group."""

    from_group: str


def _kind(variable: Any) -> str:
    known = {"value", "generateValue", "sync", "fromService", "fromGroup"}
    given = known & set(variable) if isinstance(variable, dict) else set()
    return given.pop() if len(given) == 1 else "none"


ServiceVariable = Annotated[
    Annotated[Value, Tag("value")]
    | Annotated[Generated, Tag("generateValue")]
    | Annotated[Secret, Tag("sync")]
    | Annotated[Reference, Tag("fromService")]
    | Annotated[FromGroup, Tag("fromGroup")],
    Discriminator(
        _kind,
        custom_error_type="variable",
        custom_error_message="has exactly one of value, generateValue, sync, fromService, fromGroup",
    ),
]
GroupVariable = Annotated[
    Annotated[Value, Tag("value")] | Annotated[Generated, Tag("generateValue")],
    Discriminator(
        _kind,
        custom_error_type="group_variable",
        custom_error_message="a group holds values only: Render ignores sync: false, fromService and fromGroup there",
    ),
]


class Group(_Model):
    """Variables that several services share."""

    name: str
    env_vars: list[GroupVariable]


class BuildFilter(_Model):
    """The files whose change starts a build."""

    paths: list[str] = []
    ignored_paths: list[str] = []


class Cron(_Model):
    """A service that starts a command on a schedule."""

    type: Literal["cron"]
    name: str
    runtime: Literal["elixir", "go", "node", "python", "ruby", "rust", "docker", "image"]
    plan: Literal["starter", "standard", "pro", "pro plus", "pro max", "pro ultra"]
    region: Region
    schedule: Annotated[str, AfterValidator(_five_fields)]
    build_command: str | None = None
    start_command: str | None = None
    docker_command: str | None = None
    repo: str | None = None
    branch: str | None = None
    root_dir: str | None = None
    auto_deploy_trigger: Literal["commit", "checksPass", "off"] | None = None
    build_filter: BuildFilter | None = None
    env_vars: list[ServiceVariable] = []

    @model_validator(mode="after")
    def _commands_fit_the_runtime(self) -> Cron:
        native = self.runtime in _NATIVE
        if native and not (self.build_command and self.start_command and not self.docker_command):
            raise ValueError(f"a service of runtime {self.runtime} has buildCommand and startCommand, no dockerCommand")
        if not native and (self.build_command or self.start_command):
            raise ValueError(f"a service of runtime {self.runtime} has dockerCommand only")
        return self


class Allowed(_Model):
    """A block of addresses that may connect from outside Render."""

    source: str
    description: str = ""


class KeyValue(_Model):
    """Valkey, hosted by Render."""

    type: Literal["keyvalue"]
    name: str
    plan: Literal["free", "starter", "standard", "pro", "pro plus", "pro max", "pro ultra"]
    region: Region
    maxmemory_policy: Literal["noeviction"] = Field(alias="maxmemoryPolicy")
    """Render's default, allkeys-lru, could evict a job's lock, so only noeviction is accepted."""
    ip_allow_list: list[Allowed]


def _service(service: Any) -> str:
    return str(service.get("type")) if isinstance(service, dict) else "none"


Service = Annotated[
    Annotated[Cron, Tag("cron")] | Annotated[KeyValue, Tag("keyvalue")],
    Discriminator(
        _service, custom_error_type="service", custom_error_message="is of type cron or keyvalue in this project"
    ),
]


class Previews(_Model):
    """Whether a pull request gets services of its own."""

    generation: Literal["off", "manual", "automatic"]


class Blueprint(_Model):
    """The whole file."""

    previews: Previews | None = None
    env_var_groups: list[Group] = []
    services: list[Service]

    @property
    def crons(self) -> list[Cron]:
        """The scheduled services."""
        return [service for service in self.services if isinstance(service, Cron)]

    def variables(self, service: Cron) -> dict[str, Value | Generated | Secret | Reference]:
        """Return the variables that a service's process sees, by name; its own come before those of its groups."""
        groups = {group.name: group for group in self.env_var_groups}
        found: dict[str, Value | Generated | Secret | Reference] = {}
        for variable in service.env_vars:
            if isinstance(variable, FromGroup):
                found = {each.key: each for each in groups[variable.from_group].env_vars} | found
            else:
                found[variable.key] = variable
        return found

    @model_validator(mode="after")
    def _names_resolve(self) -> Blueprint:
        problems = []
        names = [service.name for service in self.services]
        groups = [group.name for group in self.env_var_groups]
        kinds = {(service.type, service.name) for service in self.services}
        problems += [f"{name} is there twice" for name in sorted({n for n in names if names.count(n) > 1})]
        problems += [f"group {name} is there twice" for name in sorted({n for n in groups if groups.count(n) > 1})]
        keys_of = {group.name: [each.key for each in group.env_vars] for group in self.env_var_groups}
        keys_of |= {
            cron.name: [each.key for each in cron.env_vars if not isinstance(each, FromGroup)] for cron in self.crons
        }
        for name, keys in keys_of.items():
            problems += [f"{name}: {key} is set twice" for key in sorted({k for k in keys if keys.count(k) > 1})]
        for cron in self.crons:
            for variable in cron.env_vars:
                if isinstance(variable, FromGroup) and variable.from_group not in groups:
                    problems.append(f"{cron.name}: there is no group {variable.from_group}")
                if isinstance(variable, Reference):
                    source = variable.from_service
                    if (source.type, source.name) not in kinds:
                        problems.append(f"{cron.name}: {variable.key} comes from {source.name}, which is not there")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def parse_blueprint(text: str, place: str = "render.yaml") -> Blueprint:
    """Check the text of a Blueprint; ``place`` names it in messages.

    Raises:
        Misconfigured: Names every problem with its place.
    """
    try:
        content = yaml.load(text, StrictLoader)  # noqa: S506 - a safe loader, and stricter
        return Blueprint.model_validate(content)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise Misconfigured(f"{place}, line {line}: {error.problem}") from None
    except ValidationError as error:
        problems = [_problem(detail, content) for detail in error.errors(include_url=False)]
        raise Misconfigured(f"{place}: " + "; ".join(dict.fromkeys(problems))) from None


def load_blueprint(path: Path) -> Blueprint:
    """Read and check a Blueprint.

    Raises:
        Misconfigured: Names every problem with its place.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{path.name}: cannot be read ({type(error).__name__})") from None
    return parse_blueprint(text, path.name)


def _problem(detail: Any, content: Any) -> str:
    """Return a problem with its place in the file; a service is named, not numbered."""
    place, node = [], content
    for step in detail["loc"]:
        inside = node.get(step) if isinstance(node, dict) else None
        if isinstance(node, list) and isinstance(step, int) and step < len(node):
            inside = node[step]
        elif not isinstance(node, dict) or (inside is None and step != detail["loc"][-1]):
            continue  # names a type of the model, not a place in the file
        named = inside.get("name") or inside.get("key") if isinstance(inside, dict) and isinstance(step, int) else None
        place.append(str(named or step))
        node = inside
    field = str(detail["loc"][-1]) if detail["loc"] else ""
    message = pydantic_message(detail, extra_forbidden=_WRONG.get(field, "is not a known key"))
    return f"{'.'.join(place)}: {message}" if place else message
