-- Memory that is offline in online blocks (unplugged by virtio-mem, or ballooned), and the descriptors that are kept
-- for it (computed).
WITH latest AS (SELECT host, max(ts) AS ts FROM runs GROUP BY host)
SELECT
    runs.host,
    sum(pages * page_bytes) AS offline_bytes,
    sum(pages * descriptor_bytes) AS descriptor_bytes
FROM runs
JOIN latest ON runs.host = latest.host AND runs.ts = latest.ts
WHERE state = 'offline'
GROUP BY runs.host
ORDER BY offline_bytes DESC, runs.host;
