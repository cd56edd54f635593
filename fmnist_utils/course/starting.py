"""The set-up cell's last line."""

from fmnist_utils import profile
from fmnist_utils.plots import use_style
from fmnist_utils.results import hardware, versions


def begin() -> None:
    """Set the figures' style, and print the profile, the hardware and the versions that the outputs come from."""
    use_style()
    found = hardware()
    cores = f"{found['cores']} CPU core{'s' if found['cores'] > 1 else ''} ({found['cpu']})"
    print(f"Profile {profile()} on {found['gpu'] + ', ' if 'gpu' in found else ''}{cores}")
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
