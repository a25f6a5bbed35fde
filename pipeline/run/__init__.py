"""Run: which process does what, and the whole run. The only wing that imports Ray.

request        a configuration checked against the world, before anything is written
settings       what every process of a run is told
stages         what one process of each kind does: index and prepare, or encode and commit
driver         which stage works on what, engine or no engine
engine_inline  the stages in this process
ray_cluster    join a cluster, or start one
actors         the stages as Ray actors
engine_ray     the actors of a run, kept alive
metrics_ray    what Prometheus sees of a run
runner         the whole data flow on one screen
"""
