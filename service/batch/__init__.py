"""Recommendations for many users, or vectors of many items, into files: mails, caches, offline studies.

    python -m service batch --bundle DIR --input histories.parquet --output DIR [--workers 4]
    python -m service embed --bundle DIR --input items.jsonl --output DIR [--workers 4]

The same bundle, engine and request path as the service; no Redis: items come from the bundle. The rows
are cut into parts; a part is one Parquet file put in place atomically, so a killed job goes on where it
was and a part is never half there. With one worker it runs in this process; with more, on Ray Data
(`pip install ray[data]`), one engine or encoder per worker, on as many machines as the Ray cluster has.
"""
