-- What folding would leave of each host's descriptors, reserved memory aside (computed; not available in Linux today).
-- A map page describes 64 pages. A folio of 128 pages or more keeps one map page; other pages in use keep each map page
-- that they touch, and two runs that touch the same one keep it once.
WITH latest AS (SELECT host, max(ts) AS ts FROM runs GROUP BY host),
used AS (
    SELECT
        runs.host, pages, folio_order,
        floor(start_pfn / 64) AS first,
        floor((start_pfn + pages - 1) / 64) AS last,
        lag(floor((start_pfn + pages - 1) / 64)) OVER (PARTITION BY runs.host ORDER BY start_pfn) AS before
    FROM runs
    JOIN latest ON runs.host = latest.host AND runs.ts = latest.ts
    WHERE state NOT IN ('free', 'free, not initialised', 'offline', 'no memory', 'poisoned', 'reserved')
)
SELECT
    host,
    sum(
        CASE WHEN folio_order > 6 THEN pages / power(2, folio_order)
             WHEN first = before THEN last - first
             ELSE last - first + 1 END
    ) * 4096 AS left_bytes
FROM used
GROUP BY host
ORDER BY left_bytes DESC, host;
