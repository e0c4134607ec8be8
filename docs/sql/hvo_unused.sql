-- Hosts on which HVO is on, but huge pages predate it. Filling the pool again would give `unused_bytes` back.
-- Where page flags tell which huge pages are optimised (Linux 6.16 to 7.0), those that are not are summed up. Elsewhere
-- the kernel counts more descriptors than there would be if all of them were optimised. Only hosts that say whether HVO is
-- on (live ones), and that know one or the other (6.12 or newer), can be in it.
WITH latest AS (SELECT host, max(ts) AS ts FROM runs GROUP BY host),
huge AS (
    SELECT
        runs.*,
        CASE WHEN state = 'hugetlb' AND power(2, folio_order) * descriptor_bytes > page_bytes
             THEN pages * descriptor_bytes - pages / power(2, folio_order) * page_bytes
             ELSE 0 END AS bytes
    FROM runs
    JOIN latest ON runs.host = latest.host AND runs.ts = latest.ts
    WHERE hvo
),
hosts AS (
    SELECT
        host,
        max(memmap_pages) * max(page_bytes) AS counted_bytes,
        sum(pages) * max(descriptor_bytes) AS full_bytes,
        sum(bytes) AS savable_bytes,
        count(optimised) > 0 AS tells,
        sum(CASE WHEN optimised THEN 0 ELSE bytes END) AS plain_bytes
    FROM huge
    GROUP BY host
),
unused AS (
    SELECT
        host,
        savable_bytes,
        CASE WHEN tells THEN plain_bytes
             ELSE least(savable_bytes, counted_bytes - (full_bytes - savable_bytes)) END AS unused_bytes
    FROM hosts
)
SELECT host, savable_bytes, unused_bytes
FROM unused
WHERE savable_bytes > 0 AND unused_bytes > 0
ORDER BY unused_bytes DESC, host;
