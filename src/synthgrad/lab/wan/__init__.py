"""A wide-area link between workers of one machine: a network namespace for each, and a delay line between them.

Start with ``link.py`` (what is emulated), then ``network.py`` (what a benchmark uses). ``process.py`` starts and stops
the delay line; ``relay/`` is the delay line itself, a program of its own that imports neither PyTorch nor this package.

::

    link = parse_link("rtt_ms=50,mbit_s=1000")
    with emulated(link, num_workers=2) as network:
        command = network.command(0, [sys.executable, "worker.py", network.hosts[0]])
        subprocess.run(command, env={**os.environ, "GLOO_SOCKET_IFNAME": network.interface}, check=True)
        print(network.counts())

How a frame travels, from worker 0 to worker 1:

1. TCP in the namespace of worker 0 hands it to the TAP device ``wan0``, whose other end the relay holds.
2. The relay reads it and looks up the line from 0 to 1 by the destination's address (``relay/main.py``).
3. The line drops it if too much waits already, or else notes when its last bit has left and when that bit arrives,
   half a round trip later (``relay/line.py``).
4. When it is due, the relay writes it to ``wan0`` in the namespace of worker 1.

The queue discipline ``netem`` would do all this inside the kernel, but many kernels are built without it.
"""

from .link import Link, LinkError, parse_link
from .network import Network, emulated, unavailable_reason
from .process import Counts

__all__ = ["Counts", "Link", "LinkError", "Network", "emulated", "parse_link", "unavailable_reason"]
