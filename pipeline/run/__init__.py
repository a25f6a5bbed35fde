"""Run: which process does what, and the whole run. The only wing that imports Ray.

request        a configuration checked against the world, before anything is written
settings       what every process of a run is told
prepare_stage  what a process on a CPU does: index a part, prepare a unit
encode_stage   what a process with a device does: encode a unit and commit it
fleet          the processes that can be given work, by node and kind
events         what can come of a call
engine         what a driver asks of whatever carries its calls out
calls          what each process has not answered yet, and since when
progress       the driver's account, and which parts are done
work           what a driver is given to do, and within which bounds
cutting        parts become units, ahead of need
leases         which process prepares which unit next
waiting        prepared units that no encoder has taken yet
board          where every unit is, and the bytes of patches by node
health         processes that fail again and again
patience       what is waited for, and for how long; when images are read under guard
failures       whose fault a failure is, and what follows
driver         which stage works on what, engine or no engine
engine_inline  the stages in this process
sizing         how many processes each node gets, and what each asks of Ray
backend        what an engine asks of whatever runs actors
places         the nodes that live, and what each of them lacks
watch          how many images of their units encoders have encoded
deaths         processes that have died, until it can be said why
staff          the processes that were started, ready or not
admission      which processes may work on one output
actors         the stages as actors
engine_ray     the actors of a run, kept alive while nodes come and go
ray_backend    actors of Ray
metrics_ray    what Prometheus sees of a run
ray_cluster    join a cluster, or start one, and begin there
verify_ray     `verify` on a cluster
start          the engine that a configuration asks for
settle         what became of planned files, before anything is planned
resume         what is committed before a run
folding        the ledger files of parts that are done, written meanwhile
summary        what a run did, and what its output holds
indexing       a source listed and indexed, and no more
runner         the whole data flow on one screen
"""
