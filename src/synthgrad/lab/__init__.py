"""The laboratory: what the library is measured with. Needs the extra ``lab``; the library imports nothing of it.

``tasks`` holds data sets and reference networks, ``experiments`` the experiments and benchmarks, ``wan`` an emulated
wide-area network, ``records`` what they write, ``report`` tables and plots of that, ``cli`` the command line.
"""
