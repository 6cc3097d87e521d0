"""What ``python -m ltp.calibrate`` does.

:mod:`~ltp.calibration.request` says what is wished, :mod:`~ltp.calibration.sample` what it is measured on.
:mod:`~ltp.calibration.flops` and :mod:`~ltp.calibration.latency` meet it, :mod:`~ltp.calibration.run` leads from one to
the other, :mod:`~ltp.calibration.directory` keeps what came out and :mod:`~ltp.calibration.summary` prints it.
"""
