-- Hosts on which HVO is on, but huge pages predate it: the kernel counts more descriptors than there would be if all
-- of them were optimised. Filling the pool again would give `unused_bytes` back. Only hosts that say whether HVO is on
-- (live ones) and whose kernel counts descriptors (6.12 or newer) can be in it.
WITH latest AS (SELECT host, max(ts) AS ts FROM runs GROUP BY host),
hosts AS (
    SELECT
        runs.host,
        max(memmap_pages) * max(page_bytes) AS counted_bytes,
        sum(pages) * max(descriptor_bytes) AS full_bytes,
        sum(
            CASE WHEN state = 'hugetlb' AND power(2, folio_order) * descriptor_bytes > page_bytes
                 THEN pages * descriptor_bytes - pages / power(2, folio_order) * page_bytes
                 ELSE 0 END
        ) AS savable_bytes
    FROM runs
    JOIN latest ON runs.host = latest.host AND runs.ts = latest.ts
    WHERE hvo AND memmap_pages IS NOT NULL
    GROUP BY runs.host
)
SELECT host, savable_bytes, least(savable_bytes, counted_bytes - (full_bytes - savable_bytes)) AS unused_bytes
FROM hosts
WHERE savable_bytes > 0 AND counted_bytes > full_bytes - savable_bytes
ORDER BY unused_bytes DESC, host;
