"""RunPod's GraphQL, as far as the `runpod` package and old command lines speak it. Business errors come with status 200.

Owns the table of types and the functions behind the fields. Renting itself is `runpod_stock`'s.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from . import runpod_stock as stock
from .faces import Reply, Request
from .graphql import Field, GraphQLError, check, fill, parse
from .graphql import answer as select
from .market import Market
from .rentals import AccountRecord, MarketError, View

ACCOUNT = "runpod"
CLOUDS = {"SECURE": ("SECURE",), "COMMUNITY": ("COMMUNITY",), "ALL": ("SECURE", "COMMUNITY")}
NO_SPOT = "There are no instances available with the request specifications. Please try again later."  # they are gone for good


def _scalars(words: str) -> dict[str, str]:
    return dict.fromkeys(words.split(), "")


TYPES: dict[str, dict[str, str]] = {
    "Query": {"myself": "User", "pod": "Pod", "gpuTypes": "GpuType"},
    "Mutation": _scalars("podTerminate")
    | dict.fromkeys(("podFindAndDeployOnDemand", "deployCpuPod", "podRentInterruptable", "podBidResume", "podStop", "podResume"), "Pod")
    | {"updateUserSettings": "User"},
    "User": {"pods": "Pod", "networkVolumes": "NetworkVolume"} | _scalars("id email pubKey clientBalance currentSpendPerHr spendLimit"),
    "NetworkVolume": _scalars("id name size dataCenterId"),
    "Pod": {"machine": "PodMachineInfo", "runtime": "PodRuntime"}
    | _scalars("id name desiredStatus imageName costPerHr gpuCount vcpuCount memoryInGb containerDiskInGb volumeInGb volumeMountPath")
    | _scalars("ports env dockerArgs dockerId machineId podType port lastStatusChange uptimeSeconds"),
    "PodMachineInfo": _scalars("gpuDisplayName podHostId location"),
    "PodRuntime": {"ports": "PodRuntimePorts", "uptimeInSeconds": ""},
    "PodRuntimePorts": _scalars("ip isIpPublic privatePort publicPort type"),
    "GpuType": {"lowestPrice": "LowestPrice"}
    | _scalars("id displayName memoryInGb secureCloud communityCloud securePrice communityPrice maxGpuCount maxGpuCountSecureCloud")
    | _scalars("maxGpuCountCommunityCloud manufacturer cudaCores oneMonthPrice threeMonthPrice oneWeekPrice")
    | _scalars("communitySpotPrice secureSpotPrice"),
    "LowestPrice": _scalars("minimumBidPrice uninterruptablePrice stockStatus"),
}

DEPLOY_INPUT = frozenset((
    "name", "imageName", "cloudType", "startSsh", "startJupyter", "gpuTypeId", "supportPublicIp", "gpuCount", "volumeInGb", "minVcpuCount",
    "minMemoryInGb", "dataCenterId", "dockerArgs", "countryCode", "containerDiskInGb", "ports", "volumeMountPath", "env", "templateId",
    "networkVolumeId", "allowedCudaVersions", "minCudaVersion", "minDownload", "minUpload", "instanceId", "bidPerGpu", "volumeKey",
    "stopAfter", "terminateAfter",  # taken, answered with thanks, and acted on by nothing
    "compliance", "containerRegistryAuthId", "deployCost",
))  # fmt: skip


class BusinessError(Exception):
    """What GraphQL says with status 200."""


def answer(market: Market, request: Request) -> Reply:
    """One GraphQL request."""
    account = market.account(request.bearer or request.query.get("api_key", ""))
    pod = market.rental_of_key(request.bearer) if account is None else None
    if account and account.name != ACCOUNT:
        account = None
    try:
        document = request.document()
        operation = parse(str(document.get("query", "")))
        check(operation.selection, "Query" if operation.kind == "query" else "Mutation", TYPES)
        variables = document.get("variables") or {}
        call = _Call(market, account, request.base_url, pod.id if pod and pod.account == ACCOUNT else "")
        data, errors = call.run(operation.selection, variables)
    except (GraphQLError, MarketError, AttributeError, TypeError) as error:
        return Reply.json({"errors": [{"message": str(error)}]}, 400)
    except PermissionError:
        return Reply.json({"errors": [{"message": "Unauthorized"}]}, 401)
    return Reply.json({"data": data} | ({"errors": errors} if errors else {}))


def split(args: str) -> list[str]:
    """One string into a command, as RunPod does: JSON with `cmd` and `entrypoint`, else a shell's rules, else at spaces."""
    try:
        document = json.loads(args)
        return [*document.get("entrypoint", []), *document.get("cmd", [])]
    except (ValueError, AttributeError):
        pass
    try:
        return shlex.split(args)
    except ValueError:
        return args.split()


class _Call:
    """One operation on behalf of one account, or of a pod with its own key."""

    def __init__(self, market: Market, account: AccountRecord | None, url: str, own_pod: str) -> None:
        self._market, self._url, self._own_pod = market, url, own_pod
        self._account = account
        if own_pod:
            self._account = next(one for one in market.state.accounts if one.name == ACCOUNT)
        self._fields: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "myself": self._myself, "pod": self._pod, "gpuTypes": self._gpu_types, "podFindAndDeployOnDemand": self._deploy,
            "deployCpuPod": self._no_capacity, "podRentInterruptable": self._no_spot, "podBidResume": self._no_spot, "podStop": self._stop,
            "podResume": self._resume, "podTerminate": self._terminate, "updateUserSettings": self._settings,
        }  # fmt: skip

    def run(self, selection: Sequence[Field], variables: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        data: dict[str, Any] = {}
        errors: list[dict[str, Any]] = []
        for field in selection:
            wanted = fill(dict(field.arguments), variables).get("input") or {}
            if field.name != "gpuTypes" and self._account is None:
                raise PermissionError
            if self._own_pod and (field.name not in ("pod", "podStop", "podTerminate") or wanted.get("podId") != self._own_pod):
                raise PermissionError
            try:
                data[field.alias] = select(self._fields[field.name](wanted), field.selection, variables)
            except (BusinessError, MarketError) as error:
                text = "pod not found to terminate" if field.name == "podTerminate" else str(error)
                errors.append({"message": text, "path": [field.alias]})
                data[field.alias] = None
        return data, errors

    @property
    def _who(self) -> AccountRecord:
        assert self._account
        return self._account

    def _show(self, wanted: Mapping[str, Any]) -> View:
        return self._market.show(self._who.name, str(wanted.get("podId")))

    def _myself(self, _: Mapping[str, Any]) -> dict[str, Any]:
        views = self._market.rentals(self._who)
        rates = [view.rental.offer.prices.usd_per_hour(view.rental.spec.disk_gib) for view in views if view.status != "exited"]
        return {
            "id": f"user_{self._who.name}",
            "email": "you@example.com",
            "pubKey": "\n".join(self._who.ssh_keys),
            "networkVolumes": [],
            "clientBalance": float(self._market.balance_usd(self._who)),
            "currentSpendPerHr": float(sum(rates, Decimal(0))),
            "spendLimit": 80,
            "pods": [self._document(view) for view in views],
        }

    def _pod(self, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            return self._document(self._show(wanted))
        except MarketError:
            return None

    def _document(self, view: View) -> dict[str, Any]:
        """A pod; RUNNING is what was asked for, whatever it does."""
        rental, data, running = view.rental, view.rental.face_data, view.status == "running"
        port = {"ip": "127.0.0.1", "isIpPublic": True, "privatePort": 22, "publicPort": view.seen.port, "type": "tcp"}
        uptime = int((self._market.now() - rental.booted_at).total_seconds()) if running else 0
        change = "Exited by User" if rental.asked_to_stop else "Exited by Runpod" if view.status == "exited" else "Rented by User"
        return {
            "id": rental.id, "name": rental.spec.label, "imageName": rental.spec.image, "dockerId": None, "podType": "RESERVED",
            "desiredStatus": "EXITED" if view.status == "exited" else "RUNNING",
            "costPerHr": float(rental.offer.prices.gpu_usd_per_hour), "gpuCount": 1, "vcpuCount": stock.cpus(rental.offer),
            "memoryInGb": stock.memory_gb(rental.offer), "containerDiskInGb": data["disk_gb"], "volumeInGb": data["volume_gb"],
            "volumeMountPath": data["volume_path"], "ports": ",".join(data["ports"]), "port": None, "dockerArgs": data["args"],
            "env": [f"{name}={value}" for name, value in rental.spec.env.items()], "machineId": rental.offer.machine_id,
            "lastStatusChange": f"{change}: {rental.booted_at:%a %b %d %Y %H:%M:%S GMT+0000}", "uptimeSeconds": uptime,
            "machine": {"gpuDisplayName": rental.offer.gpu_name, "podHostId": stock.host_id(rental), "location": None},
            "runtime": {"uptimeInSeconds": uptime, "ports": [port] if "22/tcp" in data["ports"] else []} if running else None,
        }  # fmt: skip

    def _gpu_types(self, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [self._gpu_type(gpu) for gpu in stock.GPU_TYPES if wanted.get("id") in (None, gpu.id)]

    def _gpu_type(self, gpu: stock.GpuType) -> dict[str, Any]:
        secure, community = float(gpu.secure_usd), float(gpu.community_usd)
        machines = sum(len(stock.free(self._market, gpu.id, cloud)) for cloud in CLOUDS["ALL"])

        def lowest(_: Mapping[str, Any]) -> dict[str, Any]:
            price = min([one for one in (secure, community) if one], default=None)
            return {"minimumBidPrice": None, "uninterruptablePrice": price, "stockStatus": stock.level(machines).capitalize()}

        return {
            "id": gpu.id, "displayName": gpu.name, "memoryInGb": gpu.vram_gb, "manufacturer": "Nvidia", "cudaCores": 0,
            "secureCloud": bool(gpu.centers), "communityCloud": bool(gpu.community_machines), "securePrice": secure,
            "communityPrice": community, "maxGpuCount": 8, "maxGpuCountSecureCloud": 8, "maxGpuCountCommunityCloud": 4,
            "oneMonthPrice": None, "threeMonthPrice": None, "oneWeekPrice": None, "communitySpotPrice": None, "secureSpotPrice": None,
            "lowestPrice": lowest,
        }  # fmt: skip

    def _deploy(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(wanted) - DEPLOY_INPUT):
            raise GraphQLError(f'Field "{unknown[0]}" is not defined by type "PodFindAndDeployOnDemandInput".')
        if not wanted.get("imageName") or wanted.get("cloudType", "SECURE") not in CLOUDS:
            raise BusinessError("You must either provide a template id or pod configuration parameters")
        order = stock.Order(
            name=wanted.get("name") or "",
            image=wanted["imageName"],
            clouds=CLOUDS[wanted.get("cloudType", "SECURE")],
            gpu_id=wanted.get("gpuTypeId") or "",
            count=wanted.get("gpuCount") or 1,
            disk_gb=wanted.get("containerDiskInGb") or 20,
            env={str(one["key"]): str(one["value"]) for one in wanted.get("env") or []},
            ports=tuple(one for one in (wanted.get("ports") or "").split(",") if one),
            command=tuple(split(wanted.get("dockerArgs") or "")),
            args=wanted.get("dockerArgs") or "",
            centers=(wanted["dataCenterId"],) if wanted.get("dataCenterId") else (),
            min_cuda=wanted.get("minCudaVersion") or "",
            cudas=tuple(wanted.get("allowedCudaVersions") or ()),
            volume_gb=wanted.get("volumeInGb") or 0,
            volume_path=wanted.get("volumeMountPath") or "",
            start_ssh=bool(wanted.get("startSsh")),
        )
        rental = stock.rent(self._market, self._who, order, self._url)
        return self._document(self._market.show(self._who.name, rental.id))

    def _no_capacity(self, _: Mapping[str, Any]) -> None:
        raise BusinessError(stock.NO_CAPACITY)

    def _no_spot(self, _: Mapping[str, Any]) -> None:
        raise BusinessError(NO_SPOT)

    def _stop(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        self._market.stop(self._who.name, self._show(wanted).rental.id)
        return self._document(self._show(wanted))

    def _resume(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        self._market.restart(self._who.name, self._show(wanted).rental.id, fresh_disk=True)
        return self._document(self._show(wanted))

    def _terminate(self, wanted: Mapping[str, Any]) -> None:
        self._market.destroy(self._who.name, self._show(wanted).rental.id)

    def _settings(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        keys = [line for line in str(wanted.get("pubKey", "")).splitlines() if line.strip()]
        self._market.set_ssh_keys(self._who, keys)
        self._account = next(one for one in self._market.state.accounts if one.name == ACCOUNT)
        return self._myself({})
