"""The steps of torch.Dockerfile that need no container engine, no GPU and nothing of NVIDIA's."""

from pathlib import Path

from plugins import library
from tests.docker import dockerfile

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker/torch.Dockerfile"
INSTRUCTIONS = dockerfile.instructions(DOCKERFILE.read_text())

# With the packages of the tests, all of the engine is imported before it looks for a GPU.
OPEN = """
from bundle.manifest import Bundle
from engines.load import open_engine
from service.settings import Settings

settings = Settings()
open_engine(Bundle.load(settings.bundle), engine=settings.engine)
"""


def test_the_image_has_all_that_the_engine_needs_but_a_gpu(tmp_path: Path) -> None:
    image = dockerfile.build(DOCKERFILE, ROOT, tmp_path, installs=False)
    image.environment["CUDA_VISIBLE_DEVICES"] = "-1"

    result = image.python("-c", OPEN)

    assert "finds no GPU; check `nvidia-smi`" in result.stderr.splitlines()[-1]
    assert image.command[1:] == ["-m", "service"]
    assert all(int(number) > 0 for number in image.user.split(":"))
    assert "/readyz" in image.healthcheck[-1]


def test_the_last_stage_has_the_kernels_and_no_compiler() -> None:
    bases = [rest for keyword, rest in INSTRUCTIONS if keyword == "FROM"]
    kernels = [rest.split()[1] for _, rest in INSTRUCTIONS if rest.startswith("--from=kernels")]

    assert kernels == [f"/build/build/plugins/{library.CUDA_KERNELS}"]
    assert [base.split()[0].split("-", 1)[1] for base in bases[1:]] == ["trixie", "slim-trixie"]
