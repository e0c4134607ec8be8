-- Which hosts would gain most from HVO: bytes of descriptors that its huge pages would give back.
-- A huge page keeps one page of descriptors and gives back the rest (computed).
WITH latest AS (SELECT host, max(ts) AS ts FROM runs GROUP BY host)
SELECT
    runs.host,
    runs.hvo,
    sum(pages / power(2, folio_order)) AS huge_pages,
    sum(pages * descriptor_bytes - pages / power(2, folio_order) * page_bytes) AS savable_bytes
FROM runs
JOIN latest ON runs.host = latest.host AND runs.ts = latest.ts
WHERE state = 'hugetlb' AND power(2, folio_order) * descriptor_bytes > page_bytes
GROUP BY runs.host, runs.hvo
ORDER BY savable_bytes DESC, runs.host;
