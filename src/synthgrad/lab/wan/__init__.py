"""Emulates a wide-area link between workers on one machine: a network namespace for each, and a relay between them.

Start with ``link.py``, the properties of the link, then ``network.py``, which benchmarks use. ``process.py`` starts and
stops the relay; ``relay/`` is the relay itself, a separate program that imports neither PyTorch nor this package.

::

    link = parse_link("rtt_ms=50,mbit_s=1000")
    with emulated(link, num_workers=2) as network:
        command = network.command(0, [sys.executable, "worker.py", network.hosts[0]])
        subprocess.run(command, env={**os.environ, "GLOO_SOCKET_IFNAME": network.interface}, check=True)
        print(network.counts())

How a frame travels from worker 0 to worker 1:

1. TCP in the namespace of worker 0 sends the frame to the TAP device ``wan0``; the relay holds the other end.
2. The relay reads the frame and finds the line from 0 to 1 by the destination address (``relay/main.py``).
3. The line drops the frame if its queue is full. Otherwise it computes when the frame's last bit leaves, and when that
   bit arrives, half a round trip later (``relay/line.py``).
4. At that time the relay writes the frame to ``wan0`` in the namespace of worker 1.

The queueing discipline ``netem`` would do all this inside the kernel, but many kernels are built without it.
"""

from .link import Link, LinkError, parse_link
from .network import Network, emulated, unavailable_reason
from .process import Counts

__all__ = ["Counts", "Link", "LinkError", "Network", "emulated", "parse_link", "unavailable_reason"]
