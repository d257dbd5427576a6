-- Each query reads the five tables of the round log, with two more columns: variant and seed.
-- `python analysis/recipes.py RUNS` runs them all. docs/round-log.md has every column with its unit.

-- Slowest devices
-- A round takes as long as its slowest device. How often was each device the slowest, and how many simulated seconds
-- would its rounds have saved without it?
WITH ranked AS (
    SELECT variant, seed, round, device, sim_time_s,
           ROW_NUMBER() OVER (PARTITION BY variant, seed, round ORDER BY sim_time_s DESC) AS place
    FROM devices
    WHERE round >= 0
),
slowest AS (SELECT * FROM ranked WHERE place = 1),
second AS (SELECT variant, seed, round, sim_time_s AS next_s FROM ranked WHERE place = 2)
SELECT slowest.variant, slowest.device, COUNT(*) AS rounds, SUM(slowest.sim_time_s - second.next_s) AS saved_s
FROM slowest
JOIN second ON slowest.variant = second.variant AND slowest.seed = second.seed AND slowest.round = second.round
GROUP BY slowest.variant, slowest.device
ORDER BY saved_s DESC
LIMIT 10;

-- Bytes per round
-- Megabytes that devices send and receive in a round, mean over rounds and seeds, without the initialization phase.
SELECT variant, AVG(bytes_up) / 1e6 AS up_mb, AVG(bytes_down) / 1e6 AS down_mb
FROM rounds
WHERE round >= 0
GROUP BY variant
ORDER BY variant;
