"""The privacy axis: clipping and noise that bound what a run reveals about a device or a sample."""

from fibec_ray.parts.privacy.base import Privacy
from fibec_ray.parts.privacy.device_dp import DeviceDp
from fibec_ray.parts.privacy.sample_dp import SampleDp

PRIVACIES: dict[str, type[Privacy]] = {"none": Privacy, "device_dp": DeviceDp, "sample_dp": SampleDp}
