"""The modules and roots under `terraform/`: by Terraform itself, and applied to an AWS on loopback.

Applying takes about a minute in which Terraform mostly waits: it begins before the first test and goes on beside them.
"""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from events import ObjectCreated, parse_triggers
from function.config import read_settings
from function.storage.objects import ObjectMissingError
from function.storage.s3 import S3Store, make_client
from tests.support.aws import ACCOUNT_ID, REGION, Aws, action_of, is_allowed
from tests.support.manifests import ROOT, Manifests, build, crd_schemas, environment, errors_of
from tests.support.terraform import Workspace, missing

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from mypy_boto3_s3 import S3Client

DIRECTORIES = sorted(path.parent.name for path in (ROOT / "terraform").glob("*/main.tf"))
TESTED = ("aws", "gpu-nodes")
EXAMPLE = "example"
PLACEHOLDER = "123456789012"  # the account in knative/aws
PROVIDER = f"arn:aws:iam::{ACCOUNT_ID}:oidc-provider/oidc.eks.{REGION}.amazonaws.com/id/ABC"
VARIABLES = (
    f"-var=region={REGION}",
    f"-var=oidc_provider_arn={PROVIDER}",
    "-var=manifests=../knative/aws",
    "-var=force_destroy=true",
)
PART_BYTES = 16 * 1024 * 1024  # from here on an upload goes in parts


@dataclass(frozen=True)
class Stack:
    """The example, applied."""

    aws: Aws
    workspace: Workspace
    outputs: dict[str, Any]

    def store(self, place: str, calls: list[tuple[str, str]] | None = None) -> S3Store:
        """The function's store of one setting; what it asks of S3 is added to `calls`, as action and resource."""
        return S3Store(self.outputs["settings"][f"{place.upper()}_URL"], make_client=lambda: self._client(calls))

    def _client(self, calls: list[tuple[str, str]] | None) -> S3Client:
        client = make_client(endpoint_url=self.aws.url, access_key_id="test", secret_access_key="test")

        def note(params: dict[str, Any], model: Any, **_: Any) -> None:
            if calls is not None:
                resource = f"arn:aws:s3:::{params['Bucket']}" + (f"/{params['Key']}" if "Key" in params else "")
                calls.append((action_of(model.name), resource))

        client.meta.events.register("before-parameter-build.s3", note)
        return client


@pytest.fixture(name="workspace", scope="module", autouse=True)
def _workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    if reason := missing():
        pytest.skip(reason)
    return Workspace(tmp_path_factory.mktemp("terraform"))


@pytest.fixture(name="aws", scope="module")
def _aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with Aws(tmp_path_factory.mktemp("aws")) as aws:
        yield aws


@pytest.fixture(name="applying", scope="module", autouse=True)
def _applying(workspace: Workspace, aws: Aws) -> Iterator[subprocess.Popen[str]]:
    """`terraform apply` of the example, begun."""
    workspace.environ.update(aws.environ)
    workspace.initialize(EXAMPLE)
    with (workspace.root / "log").open("w") as log:
        process = workspace.start(EXAMPLE, "apply", "-no-color", "-auto-approve", *VARIABLES, output=log)
    yield process
    process.terminate()
    process.wait(60)


@pytest.fixture(name="stack", scope="module")
def _stack(workspace: Workspace, aws: Aws, applying: subprocess.Popen[str]) -> Stack:
    assert applying.wait(150) == 0, (workspace.root / "log").read_text()
    outputs = json.loads(workspace.done(EXAMPLE, "output", "-json"))
    return Stack(aws, workspace, {name: found["value"] for name, found in outputs.items()})


def test_files_are_formatted(workspace: Workspace) -> None:
    """`terraform fmt` would change nothing."""
    assert workspace.run(".", "fmt", "-check", "-diff", "-recursive", "-no-color") == (0, "")


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_configurations_are_valid(workspace: Workspace, directory: str) -> None:
    """Every argument is one that the provider knows."""
    workspace.initialize(directory)
    answer = json.loads(workspace.done(directory, "validate", "-json"))
    assert (answer["valid"], answer["diagnostics"]) == (True, [])


@pytest.mark.parametrize("directory", TESTED)
def test_terraforms_own_tests_pass(workspace: Workspace, directory: str) -> None:
    """Policies, filters, names and refusals are what the `*.tftest.hcl` files say."""
    workspace.initialize(directory)
    output = workspace.done(directory, "test", "-no-color")
    assert ", 0 failed." in output, output


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("roles.tf", '"s3:AbortMultipartUpload"]', '"s3:AbortMultipartUpload", "s3:PutBucketPolicy"]'),
        ("queues.tf", '"uploads/"', '"upload/"'),
    ],
)
def test_terraforms_own_tests_can_fail(tmp_path: Path, file: str, right: str, wrong: str) -> None:
    """A role that may more, and a prefix that is another one, are seen."""
    copy = Workspace(tmp_path)
    path = tmp_path / "terraform" / "aws" / file
    assert path.read_text().count(right) == 1
    path.write_text(path.read_text().replace(right, wrong))
    copy.initialize("aws")
    name = path.stem
    status, output = copy.run("aws", "test", "-no-color", f"-filter=tests/{name}.tftest.hcl")
    assert (status, "Test assertion failed" in output) == (1, True), output


def test_a_second_plan_changes_nothing(stack: Stack) -> None:
    """What was applied is what is written."""
    assert stack.workspace.plan(EXAMPLE, *VARIABLES) == []


@pytest.fixture(name="objects")
def _objects(stack: Stack) -> Iterator[Stack]:
    """The same with objects that can be used: moto takes the refusal of plain HTTP for one of everything."""
    s3, buckets = stack.aws.client("s3"), stack.outputs["buckets"].values()
    policies = {bucket: s3.get_bucket_policy(Bucket=bucket)["Policy"] for bucket in buckets}
    for bucket in buckets:
        s3.delete_bucket_policy(Bucket=bucket)
    yield stack
    for bucket, policy in policies.items():
        s3.put_bucket_policy(Bucket=bucket, Policy=policy)


def test_an_upload_is_told_to_the_queue_as_the_function_reads_it(objects: Stack) -> None:
    """An object below UPLOADS_URL, and none beside it, becomes a notice; moto leaves out the version that it has."""
    queue_url = objects.aws.client("sqs").get_queue_url(QueueName=queue_name(objects, "uploads"))["QueueUrl"]
    bucket = objects.outputs["buckets"]["uploads"]
    objects.aws.client("s3").put_object(Bucket=bucket, Key="elsewhere/cat.png", Body=b"cat")
    objects.store("uploads").put("upscale/cat.png", b"cat")
    assert objects.store("uploads").head("upscale/cat.png").version_id
    answer = objects.aws.client("sqs").receive_message(QueueUrl=queue_url, MaxNumberOfMessages=10, WaitTimeSeconds=1)
    headers = {"Content-Type": "application/json"}
    found = [
        trigger
        for message in answer["Messages"]
        for trigger in parse_triggers(headers, message["Body"].encode()).triggers
        if isinstance(trigger, ObjectCreated)
    ]
    assert [(each.bucket, each.key) for each in found] == [(bucket, "uploads/upscale/cat.png")]


def queue_name(stack: Stack, queue: str) -> str:
    """The last part of a queue's ARN."""
    name: str = stack.outputs["queues"][queue].rpartition(":")[2]
    return name


def test_notices_that_are_never_taken_become_dead_letters(stack: Stack) -> None:
    """The queue sends them on to the other one, which keeps them for longer."""
    sqs = stack.aws.client("sqs")
    urls = [
        sqs.get_queue_url(QueueName=queue_name(stack, name))["QueueUrl"] for name in ("uploads", "uploads_dead_letters")
    ]
    first, second = (sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"] for url in urls)
    assert json.loads(first["RedrivePolicy"])["deadLetterTargetArn"] == second["QueueArn"]
    assert int(second["MessageRetentionPeriod"]) > int(first["MessageRetentionPeriod"])


@pytest.mark.parametrize("bucket", ["models", "uploads", "results"])
def test_buckets_are_shut(stack: Stack, bucket: str) -> None:
    """Public access is blocked, objects are encrypted, ACLs are off, plain HTTP is refused."""
    s3, name = stack.aws.client("s3"), stack.outputs["buckets"][bucket]
    blocked = s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"]
    assert (len(blocked), set(blocked.values())) == (4, {True})
    (rule,) = s3.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    (control,) = s3.get_bucket_ownership_controls(Bucket=name)["OwnershipControls"]["Rules"]
    assert control["ObjectOwnership"] == "BucketOwnerEnforced"
    (statement,) = json.loads(s3.get_bucket_policy(Bucket=name)["Policy"])["Statement"]
    assert (statement["Effect"], statement["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})


def test_what_is_replaced_is_kept_but_not_among_results(objects: Stack) -> None:
    """A model that was overwritten has two versions, a job's record has one."""
    counts = {}
    for place in ("models", "results"):
        store = objects.store(place)
        store.put("a", b"1")
        store.put("a", b"2")
        listed = objects.aws.client("s3").list_object_versions(
            Bucket=objects.outputs["buckets"][place], Prefix=f"{place}/a"
        )
        counts[place] = len(listed["Versions"])
    assert counts == {"models": 2, "results": 1}


def statements(stack: Stack, role: str) -> list[dict[str, Any]]:
    """What a role may, as IAM has it."""
    name = stack.outputs["roles"][role].rpartition("/")[2]
    policy = stack.aws.client("iam").get_role_policy(RoleName=name, PolicyName=role)["PolicyDocument"]
    found: list[dict[str, Any]] = policy["Statement"]
    return found


def test_the_role_allows_whatever_the_store_asks_of_results(objects: Stack) -> None:
    """Records, files in parts, listings, deletions."""
    calls: list[tuple[str, str]] = []
    with closing(objects.store("results", calls)) as store:
        assert store.create("jobs/1/job.json", b"{}")
        assert not store.create("jobs/1/job.json", b"{}")
        store.upload("outputs/1/1/a.bin", BytesIO(bytes(PART_BYTES)), size_bytes=PART_BYTES, media_type="a/b")
        etag = store.head("jobs/1/job.json").etag
        assert store.get_range("jobs/1/job.json", 0, 2, etag=etag) == store.get("jobs/1/job.json", max_bytes=9)
        assert [info.key for info in store.list_objects("jobs/1/")] == ["jobs/1/job.json"]
        store.delete("jobs/1/job.json")
    assert {action for action, _ in calls} == {"s3:PutObject", "s3:GetObject", "s3:ListBucket", "s3:DeleteObject"}
    assert [call for call in calls if not is_allowed(statements(objects, "function"), *call)] == []


@pytest.mark.parametrize("place", ["models", "uploads", "workflows"])
def test_the_role_lets_the_function_read_and_not_write_what_it_is_given(objects: Stack, place: str) -> None:
    """Also what isn't there is found out, and not only refused."""
    calls: list[tuple[str, str]] = []
    with closing(objects.store(place, calls)) as store:
        with pytest.raises(ObjectMissingError):
            store.head("missing")
        assert [info.key for info in store.list_objects("missing")] == []
    allowed = statements(objects, "function")
    assert len(calls) == 2
    assert [call for call in calls if not is_allowed(allowed, *call)] == []
    (head, _) = calls
    assert not any(is_allowed(allowed, action, head[1]) for action in ("s3:PutObject", "s3:DeleteObject"))


@pytest.fixture(name="manifests")
def _manifests(stack: Stack) -> Manifests:
    directory = stack.workspace.root / "deploy"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    (directory / "kustomization.yaml").write_text(stack.outputs["kustomization"])
    return build(directory)


def test_the_kustomization_leaves_no_placeholder(manifests: Manifests) -> None:
    """Account, region, queues and roles of knative/aws are those that were made."""
    text = yaml.safe_dump(list(manifests.objects))
    assert PLACEHOLDER in yaml.safe_dump(list(build(ROOT / "knative" / "aws").objects))
    assert [word for word in (PLACEHOLDER, "us-east-1") if word in text] == []


def test_the_kustomization_is_what_kubernetes_and_the_function_take(stack: Stack, manifests: Manifests) -> None:
    """Objects fit their schemas, settings are read, and each pod has the role that was made for it."""
    known = [found for found in manifests.objects if crd_schemas() or "knative.dev/" not in found["apiVersion"]]
    assert {found["metadata"]["name"]: errors for found in known if (errors := errors_of(found))} == {}
    service = manifests.one("serving.knative.dev/Service", "comfyfn")
    settings = read_settings(environment(manifests, service))
    assert settings.models_url == stack.outputs["settings"]["MODELS_URL"]
    account = service["spec"]["template"]["spec"]["serviceAccountName"]
    assert role_of(manifests, account) == stack.outputs["roles"]["function"]
    ends = {
        "uploads": ("IntegrationSource", "comfyfn-uploads"),
        "dead_letters": ("IntegrationSink", "comfyfn-dead-letters"),
    }
    for queue, (kind, name) in ends.items():
        spec = manifests.one(kind, name)["spec"]["aws"]
        assert (spec["sqs"]["arn"], spec["sqs"]["region"]) == (stack.outputs["queues"][queue], REGION)
        assert role_of(manifests, spec["auth"]["serviceAccountName"]) == stack.outputs["roles"]["events"]


def role_of(manifests: Manifests, service_account: str) -> str:
    """The role that a service account is annotated with."""
    annotations = manifests.one("ServiceAccount", service_account)["metadata"]["annotations"]
    role: str = annotations["eks.amazonaws.com/role-arn"]
    return role


def test_everything_can_be_destroyed(stack: Stack) -> None:
    """With force_destroy, buckets that hold objects and versions too; nothing stays. The last test of this file."""
    stack.workspace.done(EXAMPLE, "destroy", "-no-color", "-auto-approve", *VARIABLES)
    assert stack.aws.client("s3").list_buckets()["Buckets"] == []
    assert "QueueUrls" not in stack.aws.client("sqs").list_queues()
    assert stack.aws.client("iam").list_roles()["Roles"] == []
