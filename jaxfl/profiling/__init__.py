"""Where the time of a round goes: by phase, by number of clients, and beside what is possible."""

from jaxfl._public import public as _public
from jaxfl.profiling.peaks import machine_peaks as machine_peaks
from jaxfl.profiling.profiler import profile as profile
from jaxfl.profiling.profiler import scaling as scaling
from jaxfl.profiling.result import Peaks as Peaks
from jaxfl.profiling.result import Phase as Phase
from jaxfl.profiling.result import Profile as Profile
from jaxfl.profiling.result import Scaling as Scaling

__all__ = _public(globals())
