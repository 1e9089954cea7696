-- The role that Grafana reads with. It can change nothing.
CREATE ROLE grafana LOGIN PASSWORD 'grafana';
GRANT pg_read_all_data TO grafana;
