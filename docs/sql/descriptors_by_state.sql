-- What the fleet's descriptors describe (computed; HVO, where it is on, has given some of hugetlb's back).
WITH latest AS (SELECT host, max(ts) AS ts FROM runs GROUP BY host)
SELECT
    state,
    count(DISTINCT runs.host) AS hosts,
    sum(pages * page_bytes) AS memory_bytes,
    sum(pages * descriptor_bytes) AS descriptor_bytes
FROM runs
JOIN latest ON runs.host = latest.host AND runs.ts = latest.ts
GROUP BY state
ORDER BY descriptor_bytes DESC, state;
