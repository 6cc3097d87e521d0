"""An HTTP server for a finished run, on LitServe: one process takes requests, others compute them in batches.

A request goes through :mod:`~ltp.serving.admission` (bound, time limit, metrics) and :mod:`~ltp.serving.requests` (its
body), waits in LitServe's queue, and is computed in :mod:`~ltp.serving.api` by a :mod:`~ltp.serving.predictor`.
Importing most of its modules needs the extra ``serve``.
"""
