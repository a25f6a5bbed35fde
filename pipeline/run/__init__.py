"""Run: which process does what, and the whole run. The only wing that imports Ray.

request        a configuration checked against the world, before anything is written
settings       what every process of a run is told
prepare_stage  what a process on a CPU does: index a part, prepare a unit
encode_stage   what a process with a device does: encode a unit and commit it
events         what can come of a call
driver         which stage works on what, engine or no engine
engine_inline  the stages in this process
ray_cluster    join a cluster, or start one
sizing         how many processes a cluster gets, and what each asks of Ray
actors         the stages as Ray actors
calls          the actors of a run, and what each has not answered yet
engine_ray     the actors of a run, kept alive
metrics_ray    what Prometheus sees of a run
summary        what a run did, and what its output holds
verify_ray     ranges of parts of an output, checked on a cluster
runner         the whole data flow on one screen
"""
