-- What grew between each host's first and last recording, by state.
WITH bounds AS (SELECT host, min(ts) AS first, max(ts) AS last FROM runs GROUP BY host)
SELECT
    runs.host,
    state,
    sum(CASE WHEN runs.ts = last THEN pages * page_bytes ELSE 0 END)
        - sum(CASE WHEN runs.ts = first THEN pages * page_bytes ELSE 0 END) AS grown_bytes
FROM runs
JOIN bounds ON runs.host = bounds.host AND (runs.ts = first OR runs.ts = last)
WHERE first < last
GROUP BY runs.host, state
HAVING sum(CASE WHEN runs.ts = last THEN pages ELSE 0 END) > sum(CASE WHEN runs.ts = first THEN pages ELSE 0 END)
ORDER BY grown_bytes DESC, runs.host, state;
