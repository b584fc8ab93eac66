variable "region" {
  description = "AWS region of the cluster."
  type        = string
}

variable "cluster_name" {
  description = "Name of the EKS cluster."
  type        = string

  validation {
    condition     = can(regex("^[0-9A-Za-z][0-9A-Za-z_-]{0,99}$", var.cluster_name))
    error_message = "cluster_name must be the name of an EKS cluster, not its ARN."
  }
}

variable "subnet_ids" {
  description = "Subnets of the nodes: private ones, in zones that have the instance types."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) > 0 && alltrue([for id in var.subnet_ids : startswith(id, "subnet-")])
    error_message = "subnet_ids must name at least one subnet (subnet-...)."
  }
}

variable "name" {
  description = "Begins the names of node group, launch template and role."
  type        = string
  default     = "comfyfn-gpu"
  nullable    = false

  validation {
    condition     = can(regex("^[A-Za-z][A-Za-z0-9-]{1,30}$", var.name))
    error_message = "name must have 2 to 31 letters, digits and hyphens and begin with a letter."
  }
}

variable "ami_type" {
  description = "AMI with NVIDIA's driver: AL2023_x86_64_NVIDIA or BOTTLEROCKET_x86_64_NVIDIA."
  type        = string
  default     = "AL2023_x86_64_NVIDIA"
  nullable    = false

  validation {
    condition     = contains(["AL2023_x86_64_NVIDIA", "BOTTLEROCKET_x86_64_NVIDIA"], var.ami_type)
    error_message = "ami_type must be AL2023_x86_64_NVIDIA or BOTTLEROCKET_x86_64_NVIDIA: others have no NVIDIA driver, or are not for x86."
  }
}

variable "instance_types" {
  description = "Instance types with an NVIDIA GPU and room for the requests of one pod (4 CPUs, 24 GiB); several for Spot."
  type        = list(string)
  default     = ["g6.2xlarge"]
  nullable    = false

  validation {
    condition     = length(var.instance_types) > 0 && alltrue([for type in var.instance_types : can(regex("^(g4dn|g5|g6|g6e|g6f|g7e|gr6|gr6f|p3|p3dn|p4d|p4de|p5|p5e|p5en|p6-b200|p6-b300)\\.", type))])
    error_message = "instance_types must be of the families that EKS's x86 AMIs with NVIDIA's driver are for, for example g6.2xlarge."
  }
}

variable "capacity_type" {
  description = "ON_DEMAND or SPOT. A job on a Spot node that is taken away is run again on another one."
  type        = string
  default     = "ON_DEMAND"
  nullable    = false

  validation {
    condition     = contains(["ON_DEMAND", "SPOT"], var.capacity_type)
    error_message = "capacity_type must be ON_DEMAND or SPOT."
  }
}

variable "min_size" {
  description = "Nodes that are always there, and how many there are at first. 0 needs an autoscaler, and a start of minutes."
  type        = number
  default     = 0
  nullable    = false

  validation {
    condition     = var.min_size >= 0 && floor(var.min_size) == var.min_size
    error_message = "min_size must be a whole number, at least 0."
  }
}

variable "max_size" {
  description = "Most nodes; the function's max-scale is as many GPUs."
  type        = number
  default     = 4
  nullable    = false

  validation {
    condition     = var.max_size >= max(1, var.min_size) && floor(var.max_size) == var.max_size
    error_message = "max_size must be a whole number, at least 1 and at least min_size."
  }
}

variable "volume_size_gib" {
  description = "Size of a node's volume in GiB: images, and per pod 130 GiB of emptyDir volumes (knative/base)."
  type        = number
  default     = 200
  nullable    = false

  validation {
    condition     = var.volume_size_gib >= 160
    error_message = "volume_size_gib must be at least 160: the volumes of one pod come to 130 GiB, its image and the system to 30."
  }
}

variable "volume_throughput_mib" {
  description = "Throughput of a node's volume in MiB/s; models are written to it and read from it."
  type        = number
  default     = 500
  nullable    = false

  validation {
    condition     = var.volume_throughput_mib >= 125 && var.volume_throughput_mib <= 1000
    error_message = "volume_throughput_mib must be 125 to 1000, which is what a gp3 volume has."
  }
}

variable "addons" {
  description = "EKS add-ons by name, with version (default: EKS chooses) and configuration (JSON). Leave out what the cluster has."
  type = map(object({
    version       = optional(string)
    configuration = optional(string)
  }))
  default = {
    eks-node-monitoring-agent = {}
    eks-pod-identity-agent    = {}
  }
  nullable = false

  validation {
    condition     = alltrue([for addon in values(var.addons) : addon.configuration == null || can(jsondecode(addon.configuration))])
    error_message = "configuration of an add-on must be JSON: use jsonencode({...})."
  }
}
