-- Guests that could not take 12 GiB of hot-plugged memory today: its descriptors need 1/64 of it, from memory that is
-- free before. Page-block order and watermarks aside: `pagefold plan --hotplug 12G` on the guest knows them.
WITH latest AS (SELECT host, max(ts) AS ts FROM runs GROUP BY host),
hosts AS (
    SELECT
        runs.host,
        sum(CASE WHEN state IN ('free', 'free, not initialised') THEN pages * page_bytes ELSE 0 END) AS free_bytes,
        CAST(12 AS BIGINT) * 1024 * 1024 * 1024 / max(page_bytes) * max(descriptor_bytes) AS needed_bytes
    FROM runs
    JOIN latest ON runs.host = latest.host AND runs.ts = latest.ts
    GROUP BY runs.host
)
SELECT host, free_bytes, needed_bytes
FROM hosts
WHERE free_bytes < needed_bytes
ORDER BY free_bytes, host;
